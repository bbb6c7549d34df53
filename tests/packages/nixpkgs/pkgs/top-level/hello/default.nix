# A package with source code: unpacked, built with make, installed.
{ stdenv }:

stdenv.mkDerivation {
  pname = "hello";
  version = "2.12";
  src = ./src;
  makeFlags = [ "PREFIX=$(out)" ];
  enableParallelBuilding = true;
  meta.mainProgram = "hello";
}
