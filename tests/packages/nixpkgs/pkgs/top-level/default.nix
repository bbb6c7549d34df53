# The package set as a fixed point: the packages, then each overlay.
{ lib, system, config, overlays }:

let
  make = overlays:
    let
      base = final: import ./all-packages.nix {
        inherit lib system config;
        pkgs = final;
      } // {
        inherit lib config system overlays;
        path = ../..;
        pkgs = final;
        buildPackages = final;
        targetPackages = final;
        callPackage = lib.callPackageWith (final // final.xorg or { });
        callPackages = final.callPackage;
        newScope = extra: lib.callPackageWith (final // extra);
        extend = overlay: make (overlays ++ [ overlay ]);
        appendOverlays = more: make (overlays ++ more);
      };
    in
    lib.fix (lib.foldl' (lib.flip lib.extends) base overlays);
in
make overlays
