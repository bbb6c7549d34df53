# pkg-config, whose setup hook adds each dependency's *.pc files.
{ lib, pkgs, debian }:

debian.fromDebs {
  pname = "pkg-config";
  debs = [ "pkgconf-bin" ];
  version = debian.upstreamVersion (debian.source "pkgconf-bin").version;
  setupHook = ../build-support/pkg-config-hook.sh;
  extra = ''
    ln -s pkgconf bin/pkg-config
    rm -rf share lib bin/bomtool
    mkdir nix-support
    cp $setupHook nix-support/setup-hook
  '';
}
