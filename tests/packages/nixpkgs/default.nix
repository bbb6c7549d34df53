# What `<nixpkgs>` means in the tests: a function, as in nixpkgs, that takes
# the system, a config and overlays and gives the package set.
import ./pkgs/top-level/impure.nix
