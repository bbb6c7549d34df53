# What a system string says: `lib.systems.elaborate "x86_64-linux"`.
lib:
{
  elaborate = args:
    let
      system = args.system or args;
      parts = builtins.match "([^-]+)-(.+)" system;
      cpu = builtins.elemAt parts 0;
    in
    if builtins.isAttrs args && args ? isLinux then args
    else {
      inherit system;
      config = "${cpu}-unknown-linux-gnu";
      parsed = { cpu.name = cpu; kernel.name = "linux"; };
      isLinux = true;
      isUnix = true;
      isDarwin = false;
      isWindows = false;
      isMusl = false;
      isGnu = true;
      isStatic = false;
      isx86_64 = cpu == "x86_64";
      isAarch64 = cpu == "aarch64";
      isAarch32 = false;
      isi686 = false;
      is64bit = true;
      linuxArch = if cpu == "aarch64" then "arm64" else cpu;
      extensions = { sharedLibrary = ".so"; staticLibrary = ".a"; executable = ""; library = ".so"; };
    };
  examples = { };
  flakeExposed = [ "x86_64-linux" "aarch64-linux" ];
}
