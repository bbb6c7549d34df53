lib:
rec {
  isDerivation = x: (x.type or null) == "derivation";
  toDerivation = path: { type = "derivation"; name = baseNameOf path; outPath = builtins.storePath path; outputs = [ "out" ]; };
  getOutput = output: pkg:
    if !(pkg.outputSpecified or false) then pkg.${output} or pkg.out or pkg else pkg;
  getBin = getOutput "bin";
  getLib = getOutput "lib";
  getDev = getOutput "dev";
  getMan = getOutput "man";
  getExe = pkg: getExe' pkg (pkg.meta.mainProgram or (lib.getName pkg));
  getExe' = pkg: name: "${getBin pkg}/bin/${name}";
  chooseDevOutputs = map getDev;

  hiPrio = setPrio (-10);
  lowPrio = setPrio 10;
  setPrio = priority: pkg: pkg // { meta = (pkg.meta or { }) // { inherit priority; }; };
  addMetaAttrs = meta: pkg: pkg // { meta = (pkg.meta or { }) // meta; };

  # Which files of a directory become a source.
  cleanSourceFilter = name: type:
    let base = baseNameOf (toString name); in
      !(type == "directory" && builtins.elem base [ ".git" ".svn" ".hg" ]
        || lib.hasSuffix "~" base
        || type == "symlink" && lib.hasPrefix "result" base
        || type == "unknown");
  cleanSourceWith = { filter ? _: _: true, src, name ? "source" }: builtins.path { path = src; inherit filter name; };
  cleanSource = src: cleanSourceWith { filter = cleanSourceFilter; inherit src; };
  sourceByRegex = src: regexes: cleanSourceWith {
    inherit src;
    filter = path: _:
      let relative = lib.removePrefix (toString src + "/") (toString path);
      in builtins.any (regex: builtins.match regex relative != null) regexes;
  };
}
