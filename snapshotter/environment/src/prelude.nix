# Calls a config in a closed world: it sees its own files and the pinned package sets, nothing else.
#
# Nix evaluates this in pure mode, where `<nixpkgs>` and `builtins.currentSystem` do not exist. `scopedImport`
# gives them back to the user's files, and only to those. Package sets are imported as always, so that Nix keeps
# what it has evaluated; what they ask for as `system` is supplied when they are called.
#
# The value is a list: the derivation whose build environment is meant, then, if there is one, a derivation whose
# build environment is empty, for what every environment of its kind contains.
{ source # { path, sha256 } of the user's files, in the store under the name "config"
, entry # the file to call, below `source`
, attr # names of nested attributes of its value: [ ] for the value itself
, system
, sets # { path, sha256 } in the store, by the name between < and >
}:

let
  inherit (builtins)
    any attrNames concatStringsSep filter foldl' functionArgs hasAttr head intersectAttrs isAttrs isFunction isList
    length listToAttrs map match removeAttrs stringLength substring toString typeOf;

  hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
  firstOf = count: list: if list == [ ] || count == 0 then [ ] else [ (head list) ] ++ firstOf (count - 1) (builtins.tail list);

  # What is in the store under exactly this name and content enters as it is, uncopied.
  enter = { path, sha256 }: builtins.path {
    inherit path sha256;
    name = head (match "/nix/store/[^-]*-(.*)" path);
  };

  config = enter source;
  isOwn = path: let text = toString path; in text == source.path || hasPrefix "${source.path}/" text;

  nixPath = map (name: { prefix = name; path = enter sets.${name}; }) (attrNames sets);

  findFile = searchPath: name:
    if hasPrefix "nix/" name || any ({ prefix ? "", ... }: prefix == "" || prefix == name || hasPrefix "${prefix}/" name) searchPath
    then builtins.findFile searchPath name
    else throw "<${name}> is not known on this node: `nixenv install --nixpkgs PATH` pins <nixpkgs>; others are named in /etc/nixenv/config.toml, as [package-sets.NAME]";

  # The scope of the user's files.
  scope = {
    import = path: if isOwn path then builtins.scopedImport scope path else withSystem (import path);
    scopedImport = more: path: builtins.scopedImport (if isOwn path then scope // more else more) path;
    __nixPath = nixPath;
    __findFile = findFile;
    __currentSystem = system;
    builtins = builtins // {
      inherit (scope) builtins import scopedImport;
      inherit findFile nixPath;
      currentSystem = system;
    };
  };

  # A function of the world outside that would ask for `builtins.currentSystem`, as nixpkgs is one.
  withSystem = value:
    let
      formals = functionArgs value;
      supplied =
        if formals ? system then { inherit system; }
        else if formals ? localSystem then { localSystem = { inherit system; }; }
        else { };
    in
    if !isFunction value || supplied == { } then value
    else args: value (if isAttrs args && !(args ? system || args ? localSystem) then supplied // args else args);

  nixpkgs = findFile nixPath "nixpkgs";
  pkgs = scope.import nixpkgs { };

  # Calls a function as nix-shell does, and supplies what is often wanted and has no default.
  call = value:
    let
      formals = functionArgs value;
      wanted = filter (name: !formals.${name} || name == "inNixShell") (attrNames formals);
      offered = { inherit pkgs system; lib = pkgs.lib or (scope.import "${nixpkgs}/lib"); inNixShell = true; };
    in
    if isFunction value
    then call (value (intersectAttrs (listToAttrs (map (name: { inherit name; value = null; }) wanted)) offered))
    else value;

  select = value: name:
    if !isAttrs value then throw "the config has no attribute '${name}' there: it is of type ${typeOf value}"
    else if hasAttr name value then call value.${name}
    else
      let
        names = attrNames value;
        similar = filter (hasPrefix (substring 0 2 name)) names;
        shown = firstOf 20 (if length names > 20 && similar != [ ] then similar else names);
        more = if length shown < length names then " and ${toString (length names - length shown)} more" else "";
      in
      throw "the config has no attribute '${name}' there; it has: ${concatStringsSep ", " shown}${more}";

  isDerivation = value: isAttrs value && (value.type or null) == "derivation";

  # Nix writes the variables of a build environment into its outputs, which it looks up by this attribute.
  withOutputs = value:
    if value ? drvAttrs && !(value.drvAttrs ? outputs)
    then derivation (value.drvAttrs // { outputs = [ "out" ]; })
    else value;

  environmentOf = value:
    let
      shapes = "a derivation (pkgs.mkShell { ... }), a list of packages, or a set of packages, env and shellHook";
      unknown = attrNames (removeAttrs value [ "packages" "env" "shellHook" ]);
      mkShell = pkgs.mkShellNoCC or pkgs.mkShell;
    in
    if isDerivation value then value
    else if isList value then mkShell { packages = value; }
    else if !isAttrs value then throw "the config is of type ${typeOf value}; what can be an environment is ${shapes}"
    else if unknown != [ ] then
      throw "the config is a set with the attribute '${head unknown}'; what can be an environment is ${shapes}; an attribute that is one of these is named with the annotation nixenv.attr"
    else mkShell (value.env or { } // {
      packages = value.packages or [ ];
      shellHook = value.shellHook or "";
    });

  environment = environmentOf (foldl' select (call (scope.import "${config}/${entry}")) attr);

  hasBaseline = isAttrs (environment.stdenv or null) && environment.stdenv ? mkDerivation;
  baseline = environment.stdenv.mkDerivation { name = "baseline"; };
in
map withOutputs
  ([ environment ] ++ (if hasBaseline && (builtins.tryEval baseline.drvPath).success then [ baseline ] else [ ]))
