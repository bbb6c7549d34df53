# The library of the set: the functions of nixpkgs' `lib` that shell files use.
# One attribute set; each file below adds a theme, and sees the whole as `lib`.
let
  parts = [
    ./trivial.nix
    ./lists.nix
    ./strings.nix
    ./attrsets.nix
    ./derivations.nix
    ./customisation.nix
    ./systems.nix
  ];
  themes = builtins.listToAttrs (map
    (file: {
      name = builtins.head (builtins.match "(.*)\\.nix" (baseNameOf file));
      value = import file lib;
    })
    parts);
  lib = builtins.foldl' (sum: name: sum // themes.${name}) themes
    (builtins.attrNames (removeAttrs themes [ "systems" ]));
in
lib
