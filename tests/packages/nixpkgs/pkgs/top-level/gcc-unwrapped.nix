# The compiler as Debian has it: it finds its parts relative to itself.
{ lib, pkgs, debian }:

let
  inherit (debian) fromDebs matching source upstreamVersion;
in
fromDebs {
  pname = "gcc-unwrapped";
  debs = matching "(gcc|cpp)-[0-9]+(-.*-linux-gnu)?|libgcc-[0-9]+-dev";
  version = upstreamVersion (source (lib.head (matching "gcc-[0-9]+"))).version;
  extra = ''
    # From .../bin/x86_64-linux-gnu-gcc-12, and no link-time optimiser.
    for program in gcc cpp; do
      real=$(ls bin/$triple-$program-[0-9]* | head -n 1)
      real=$(readlink -f "$real")
      [ "$real" = "$out/bin/$program" ] || mv "$real" "bin/$program.new"
    done
    rm -rf bin/*-* bin/c89* bin/c99*
    for program in gcc cpp; do mv "bin/$program.new" "bin/$program"; done
    find . -name lto1 -o -name 'libgcov.a' -o -name plugin | xargs rm -rf
    rm -rf share
    find . -type l ! -exec test -e {} \; -exec rm {} \;
  '';
}
