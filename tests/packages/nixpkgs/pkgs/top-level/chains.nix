# Packages with a closure of exactly N small store paths: `chains.n10`, ...
#
# A derivation gives a hundred of the paths at once, as outputs each of which
# refers to the next; the top path refers to the first of each hundred. So no
# evaluation goes deep, and a store that substitutes a chain has as many paths
# under way as there are groups, not thousands (with which Nix gets slow).
# Among them are plain files and links, as there are in any store.
{ lib, debian, system }:

let
  perGroup = 100;

  group = tag: first: count: derivation {
    name = "chain-${tag}-${toString first}";
    inherit system;
    outputs = [ "out" ] ++ lib.genList (n: "p${toString (n + 1)}") (count - 1);
    first = toString first;
    inherit tag;
    builder = "${debian.bootstrap}/bin/sh";
    args = [ "-eu" ./chain-group.sh ];
    PATH = "${debian.bootstrap}/bin";
    preferLocalBuild = true;
  };

  chain = n:
    let
      rest = n - 1;
      groups = lib.genList
        (g: group "n${toString n}" (g * perGroup) (lib.min perGroup (rest - g * perGroup)))
        ((rest + perGroup - 1) / perGroup);
    in
    debian.build {
      pname = "chain";
      version = toString n;
      script = ./chain.sh;
      inherit groups;
      count = toString n;
    };
in
lib.listToAttrs (map (n: lib.nameValuePair "n${toString n}" (chain n)) [ 10 100 1000 5000 ])
