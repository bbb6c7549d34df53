# Headers and libraries of dependencies are found by the compiler.
ccWrapperAddCVars() {
  if [[ -d $1/include ]]; then
    export NIX_CFLAGS_COMPILE="${NIX_CFLAGS_COMPILE:-} -isystem $1/include"
  fi
  if [[ -d $1/lib && ! -e $1/nix-support/dynamic-linker ]]; then
    export NIX_LDFLAGS="${NIX_LDFLAGS:-} -L$1/lib"
  fi
}
addEnvHooks "$targetOffset" ccWrapperAddCVars
export CC=gcc LD=ld AR=ar AS=as NM=nm RANLIB=ranlib STRIP=strip OBJCOPY=objcopy OBJDUMP=objdump READELF=readelf SIZE=size STRINGS=strings
