# What the binary cache holds: `quick`, or `full` for all packages of the set.
{ nixpkgs }:
let
  pkgs = import nixpkgs { };
  inherit (pkgs) lib;
  everyOutput = pkg: map (output: pkg.${output}) (pkg.outputs or [ "out" ]);
  quick = [ pkgs.stdenv pkgs.python3 pkgs.jq ] ++ pkgs.stdenv.initialPath;
  packages = lib.filterAttrs
    (name: _: !(lib.elem name [ "pkgs" "buildPackages" "targetPackages" "lib" "config" ]))
    pkgs;
in
{
  quick = lib.concatMap everyOutput quick;
  full = lib.concatMap everyOutput
    (lib.filter lib.isDerivation (lib.attrValues packages ++ lib.attrValues pkgs.python3Packages ++ lib.attrValues pkgs.chains));
}
