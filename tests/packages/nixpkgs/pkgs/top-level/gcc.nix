# gcc for users: the compiler with the store's headers, start files, loader and
# linker, and as in nixpkgs the variables NIX_CFLAGS_COMPILE and NIX_LDFLAGS,
# which the dependencies with include and lib directories add to.
{ lib, pkgs, debian }:

let
  unwrapped = pkgs.gcc-unwrapped;
  inherit (pkgs) glibcDev glibc binutils-unwrapped;
in
pkgs.stdenvNoCC.mkDerivation {
  pname = "gcc-wrapper";
  inherit (unwrapped) version;
  dontUnpack = true;
  setupHook = ../build-support/cc-hook.sh;
  dontPatchShebangs = true;
  installPhase = ''
    mkdir -p $out/bin $out/nix-support
    for tool in ${binutils-unwrapped}/bin/*; do ln -s $tool $out/bin/; done
    sed -e "s|@bash@|$SHELL|g" \
      -e "s|@gcc@|${unwrapped}|g" -e "s|@binutils@|${binutils-unwrapped}|g" \
      -e "s|@dev@|${glibcDev}|g" -e "s|@glibc@|${glibc}|g" -e "s|@loader@|${glibc.loader}|g" \
      ${../build-support/cc-wrapper.sh} > $out/bin/gcc
    chmod +x $out/bin/gcc
    ln -s gcc $out/bin/cc
    sed "s|/bin/gcc\"|/bin/cpp\"|" $out/bin/gcc > $out/bin/cpp
    chmod +x $out/bin/cpp
    # What is linked has this in its interpreter, as in nixpkgs.
    echo ${glibc}/lib/${glibc.loader} > $out/nix-support/dynamic-linker
  '';
  passthru = { cc = unwrapped; libc = glibc; bintools = binutils-unwrapped; isGNU = true; isClang = false; targetPrefix = ""; };
  meta.mainProgram = "gcc";
}
