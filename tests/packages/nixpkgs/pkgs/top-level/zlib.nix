# A library with a development output, whose dependencies follow it.
{ lib, debian }:

let
  out = debian.packages.zlib1g;
  dev = debian.fromDebs {
    pname = "zlib-dev";
    debs = [ "zlib1g-dev" ];
    deps = [ out ];
    library = out;
    extra = ''
      rm -rf share lib/*.a
      sed -i -e "s|^prefix=.*|prefix=$out|" -e "s|^libdir=.*|libdir=$library/lib|" -e "s|^sharedlibdir=.*|sharedlibdir=$library/lib|" \
        lib/pkgconfig/zlib.pc
      mkdir nix-support
      printf '%s ' "$library" > nix-support/propagated-build-inputs
    '';
  };
  outputs = { inherit out dev; };
in
out // outputs // {
  outputs = [ "out" "dev" ];
  out = out // outputs;
  dev = dev // outputs // { outputSpecified = true; };
}
