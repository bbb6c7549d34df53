lib:
rec {
  inherit (builtins)
    compareVersions concatStringsSep fromJSON hashString isString match parseDrvName replaceStrings split
    stringLength substring toJSON unsafeDiscardStringContext;

  concatStrings = concatStringsSep "";
  concatMapStrings = f: xs: concatStrings (map f xs);
  concatMapStringsSep = sep: f: xs: concatStringsSep sep (map f xs);
  concatImapStrings = f: xs: concatStrings (lib.imap1 f xs);
  concatImapStringsSep = sep: f: xs: concatStringsSep sep (lib.imap1 f xs);
  concatLines = concatMapStrings (s: s + "\n");
  intersperse = sep: xs:
    if xs == [ ] then [ ] else lib.drop 1 (builtins.concatMap (x: [ sep x ]) xs);
  optionalString = cond: s: if cond then s else "";
  stringAsChars = f: s: concatMapStrings f (stringToCharacters s);
  stringToCharacters = s: builtins.genList (i: substring i 1 s) (stringLength s);
  hasPrefix = prefix: s: substring 0 (stringLength prefix) s == prefix;
  hasSuffix = suffix: s:
    let start = stringLength s - stringLength suffix;
    in start >= 0 && substring start (-1) s == suffix;
  hasInfix = infix: s: builtins.length (splitString infix s) > 1;
  removePrefix = prefix: s: if hasPrefix prefix s then substring (stringLength prefix) (-1) s else s;
  removeSuffix = suffix: s:
    if hasSuffix suffix s then substring 0 (stringLength s - stringLength suffix) s else s;
  splitString = sep: s:
    map (part: builtins.unsafeDiscardStringContext part)
      (builtins.filter isString (split (escapeRegex sep) (toString s)));
  splitVersion = builtins.splitVersion;
  escape = chars: replaceStrings chars (map (c: "\\" + c) chars);
  escapeRegex = escape (stringToCharacters "\\[{()^$?*+|.");
  # A single-quoted word for a shell; plain words stay as they are.
  escapeShellArg = arg:
    let s = toString arg; in
    if match "[[:alnum:],._+:@%/-]+" s != null then s else "'${replaceStrings [ "'" ] [ "'\\''" ] s}'";
  escapeShellArgs = concatMapStringsSep " " escapeShellArg;
  escapeNixString = s: replaceStrings [ "$" ] [ "\\$" ] (toJSON s);
  toLower = replaceStrings upperChars lowerChars;
  toUpper = replaceStrings lowerChars upperChars;
  lowerChars = stringToCharacters "abcdefghijklmnopqrstuvwxyz";
  upperChars = stringToCharacters "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
  fixedWidthString = width: filler: s:
    if stringLength s >= width then s else fixedWidthString width filler (filler + s);
  toInt = s: let n = fromJSON s; in if builtins.isInt n then n else throw "toInt: ${s} is not an integer";
  fileContents = file: removeSuffix "\n" (builtins.readFile file);
  trim = s: let m = match "[[:space:]]*(.*[^[:space:]])[[:space:]]*" s; in if m == null then "" else builtins.head m;

  versionOlder = a: b: compareVersions b a == 1;
  versionAtLeast = a: b: !versionOlder a b;
  getName = x: x.pname or (parseDrvName (x.name or x)).name;
  getVersion = x: x.version or (parseDrvName (x.name or x)).version;
  versions = {
    major = v: builtins.elemAt (splitVersion v) 0;
    minor = v: builtins.elemAt (splitVersion v) 1;
    majorMinor = v: concatStringsSep "." (lib.take 2 (splitVersion v));
  };
  nameFromURL = url: sep: builtins.head (splitString sep (lib.last (splitString "/" url)));

  makeSearchPath = sub: paths: concatStringsSep ":" (map (p: "${p}/${sub}") (builtins.filter (p: p != null) paths));
  makeSearchPathOutput = output: sub: pkgs: makeSearchPath sub (map (lib.getOutput output) pkgs);
  makeBinPath = makeSearchPathOutput "bin" "bin";
  makeLibraryPath = makeSearchPathOutput "lib" "lib";
  makeIncludePath = makeSearchPathOutput "dev" "include";

  toShellVar = name: value:
    if lib.isAttrs value && !lib.isDerivation value then
      "declare -A ${name}=(${concatStringsSep " " (lib.mapAttrsToList (n: v: "[${escapeShellArg n}]=${escapeShellArg v}") value)})"
    else if builtins.isList value then
      "declare -a ${name}=(${escapeShellArgs value})"
    else "${name}=${escapeShellArg value}";
  toShellVars = vars: concatStringsSep "\n" (lib.mapAttrsToList toShellVar vars);
  isStorePath = x:
    if builtins.isString x || builtins.isPath x || x ? outPath
    then match "${builtins.storeDir}/[0-9a-z]{32}-[^/]+" (toString x) != null
    else false;
}
