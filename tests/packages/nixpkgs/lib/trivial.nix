lib:
rec {
  inherit (builtins)
    add addErrorContext bitAnd bitOr bitXor div isBool isFloat isInt isPath
    lessThan mul pathExists readFile seq deepSeq sub tail trace;

  id = x: x;
  const = x: _: x;
  flip = f: a: b: f b a;
  pipe = builtins.foldl' (x: f: f x);
  and = a: b: a && b;
  or = a: b: a || b;
  boolToString = b: if b then "true" else "false";
  mod = base: int: base - (int * (builtins.div base int));
  min = a: b: if a < b then a else b;
  max = a: b: if a > b then a else b;
  compare = a: b: if a < b then -1 else if a > b then 1 else 0;
  mapNullable = f: a: if a == null then a else f a;
  importJSON = path: builtins.fromJSON (readFile path);
  warn = msg: builtins.trace "warning: ${msg}";
  warnIf = cond: msg: if cond then warn msg else id;
  throwIf = cond: msg: if cond then throw msg else id;
  throwIfNot = cond: msg: if cond then id else throw msg;
  assertMsg = pred: msg: pred || throw msg;
  traceVal = x: builtins.trace x x;

  # A function that carries its formal arguments, for what `callPackage` reads.
  setFunctionArgs = f: args: { __functor = _: f; __functionArgs = args; };
  functionArgs = f: if f ? __functor then f.__functionArgs or (builtins.functionArgs (f.__functor f)) else builtins.functionArgs f;
  isFunction = f: builtins.isFunction f || (f ? __functor && builtins.isFunction (f.__functor f));

  fix = f: let x = f x; in x;
  extends = overlay: f: final: let prev = f final; in prev // overlay final prev;
  composeExtensions = f: g: final: prev:
    let first = f final prev; in first // g final (prev // first);
  composeManyExtensions = lib.foldr composeExtensions (_: _: { });
  makeExtensible = f: fix f // { extend = overlay: makeExtensible (extends overlay f); };

  fakeHash = "sha256-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
  fakeSha256 = lib.concatStrings (lib.genList (_: "0") 64);
  fakeSha512 = lib.concatStrings (lib.genList (_: "0") 128);

  release = "23.05";
  version = release;
  inNixShell = builtins.getEnv "IN_NIX_SHELL" != "";

  # Enough of licences, maintainers and platforms for `meta` to evaluate.
  licenses =
    let licence = spdxId: { inherit spdxId; shortName = spdxId; free = true; };
    in builtins.mapAttrs (_: licence) {
      mit = "MIT";
      asl20 = "Apache-2.0";
      bsd2 = "BSD-2-Clause";
      bsd3 = "BSD-3-Clause";
      gpl2Plus = "GPL-2.0-or-later";
      gpl3 = "GPL-3.0-only";
      gpl3Plus = "GPL-3.0-or-later";
      lgpl21Plus = "LGPL-2.1-or-later";
      mpl20 = "MPL-2.0";
      isc = "ISC";
      publicDomain = "Public-Domain";
      unlicense = "Unlicense";
    } // { unfree = { shortName = "unfree"; free = false; }; };
  maintainers = { };
  platforms = rec { linux = [ "x86_64-linux" "aarch64-linux" ]; unix = linux; all = linux; };
}
