# The function that `import <nixpkgs>` is.
{ localSystem ? { system = args.system or builtins.currentSystem; }
, system ? localSystem.system
, crossSystem ? localSystem
, config ? { }
, overlays ? [ ]
, crossOverlays ? [ ]
, ...
}@args:

let
  lib = import ../../lib;
in
import ./default.nix {
  inherit lib system overlays;
  config = if builtins.isFunction config then config { } else if builtins.isPath config then import config else config;
}
