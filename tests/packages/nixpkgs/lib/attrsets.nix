lib:
rec {
  inherit (builtins) attrNames attrValues catAttrs getAttr hasAttr intersectAttrs isAttrs listToAttrs mapAttrs removeAttrs zipAttrsWith;

  nameValuePair = name: value: { inherit name value; };
  attrByPath = path: default: set:
    if path == [ ] then set
    else if set ? ${builtins.head path} then attrByPath (builtins.tail path) default set.${builtins.head path}
    else default;
  hasAttrByPath = path: set:
    path == [ ] || (set ? ${builtins.head path} && hasAttrByPath (builtins.tail path) set.${builtins.head path});
  getAttrFromPath = path: attrByPath path (throw "cannot find attribute `${lib.concatStringsSep "." path}'");
  setAttrByPath = path: value:
    if path == [ ] then value else { ${builtins.head path} = setAttrByPath (builtins.tail path) value; };
  getAttrs = names: set: genAttrs names (name: set.${name});
  attrVals = names: set: map (name: set.${name}) names;
  filterAttrs = pred: set: removeAttrs set (builtins.filter (name: !pred name set.${name}) (attrNames set));
  mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
  mapAttrs' = f: set: listToAttrs (mapAttrsToList f set);
  mapAttrsRecursive = f:
    let go = path: mapAttrs (name: value: if isAttrs value then go (path ++ [ name ]) value else f (path ++ [ name ]) value);
    in go [ ];
  concatMapAttrs = f: set: builtins.foldl' (a: b: a // b) { } (mapAttrsToList f set);
  attrsToList = mapAttrsToList nameValuePair;
  genAttrs = names: f: listToAttrs (map (name: nameValuePair name (f name)) names);
  optionalAttrs = cond: set: if cond then set else { };
  mergeAttrs = a: b: a // b;
  mergeAttrsList = builtins.foldl' mergeAttrs { };
  foldAttrs = f: nul: sets:
    builtins.foldl' (sum: set: sum // mapAttrs (name: value: f value (sum.${name} or nul)) set) { } (lib.reverseList sets);
  zipAttrs = zipAttrsWith (_: values: values);
  collect = pred: x:
    if pred x then [ x ] else if isAttrs x then builtins.concatMap (collect pred) (attrValues x) else [ ];
  recursiveUpdateUntil = pred:
    let
      go = path: a: b: a // mapAttrs
        (name: value:
          if a ? ${name} && !pred (path ++ [ name ]) a.${name} value
          then go (path ++ [ name ]) a.${name} value
          else value)
        b;
    in
    go [ ];
  recursiveUpdate = recursiveUpdateUntil (_: a: b: !(isAttrs a && isAttrs b));
  recurseIntoAttrs = set: set // { recurseForDerivations = true; };
  dontRecurseIntoAttrs = set: set // { recurseForDerivations = false; };
}
