lib:
rec {
  # Adds `override` to what `f args` gives: the same call with other arguments.
  makeOverridable = f: args:
    let
      result = f args;
      changed = new: args // (if lib.isFunction new then new args else new);
      again = new: makeOverridable f (changed new);
    in
    if builtins.isAttrs result then
      result // {
        override = again;
        overrideDerivation = change: overrideDerivation result change;
      } // lib.optionalAttrs (result ? overrideAttrs) {
        overrideAttrs = change: makeOverridable (a: (f a).overrideAttrs change) args;
      }
    else if lib.isFunction result then lib.setFunctionArgs result (lib.functionArgs result) // { override = again; }
    else result;

  overrideDerivation = drv: change: builtins.derivation (drv.drvAttrs // change drv);

  # Calls a function (or a file that holds one) with what its formals name.
  callPackageWith = scope: fn: args:
    let
      f = if lib.isFunction fn then fn else import fn;
      wanted = lib.functionArgs f;
      missing = lib.filterAttrs (name: hasDefault: !(hasDefault || scope ? ${name} || args ? ${name})) wanted;
    in
    if missing == { } then makeOverridable f (builtins.intersectAttrs wanted scope // args)
    else throw "callPackage: no argument for ${lib.concatStringsSep ", " (builtins.attrNames missing)}";
  callPackagesWith = callPackageWith;

  makeScope = newScope: f:
    let self = f self // {
      newScope = more: newScope (self // more);
      callPackage = self.newScope { };
      overrideScope = overlay: makeScope newScope (lib.extends overlay f);
      packages = f;
    };
    in self;
}
