# `mkShell`: a derivation that is only entered, not built. Its packages, and
# the inputs of the packages in `inputsFrom`, are there; every other attribute
# is a variable.
{ lib, stdenv }:

{ name ? "nix-shell"
, packages ? [ ]
, inputsFrom ? [ ]
, buildInputs ? [ ]
, nativeBuildInputs ? [ ]
, propagatedBuildInputs ? [ ]
, propagatedNativeBuildInputs ? [ ]
, ...
}@attrs:

let
  merge = list:
    attrs.${list} or [ ]
    ++ lib.subtractLists inputsFrom (lib.flatten (lib.catAttrs list inputsFrom));
  rest = removeAttrs attrs [
    "name"
    "packages"
    "inputsFrom"
    "buildInputs"
    "nativeBuildInputs"
    "propagatedBuildInputs"
    "propagatedNativeBuildInputs"
    "shellHook"
  ];
in
stdenv.mkDerivation ({
  inherit name;
  buildInputs = merge "buildInputs";
  nativeBuildInputs = packages ++ merge "nativeBuildInputs";
  propagatedBuildInputs = merge "propagatedBuildInputs";
  propagatedNativeBuildInputs = merge "propagatedNativeBuildInputs";
  shellHook = lib.concatStringsSep "\n" (lib.catAttrs "shellHook" (lib.reverseList inputsFrom ++ [ attrs ]));

  # Building it gives a file that keeps everything alive.
  phases = [ "buildPhase" ];
  buildPhase = ''
    {
      echo "# The environment of ${name}; a shell is entered, not built."
      export
    } >> "$out"
  '';
  preferLocalBuild = true;
} // rest)
