# Reads apt's records of the packages of one solution; prints those that the
# `roots` need: name version file-name size sha256 dependency,dependency...
#
# Followed are libraries and the parts that a program was split into. Not
# followed is what serves a Debian system rather than a program: package
# management, documentation, Perl.
function follow(name) {
  if (name ~ /^(zlib1g|linux-libc-dev)$/) return 1
  if (name ~ /perl|^lib(asan|lsan|tsan|ubsan|hwasan|itm|sasl2-modules|tirpc-common|tirpc-dev|nsl-dev|c-dev-bin|cc1)/) return 0
  if (name ~ /^lib/) return 1
  return name ~ /^(python3(\.[0-9]+)?(-minimal)?|(gcc|cpp)-[0-9]+(-.*-linux-gnu)?|binutils-.*-linux-gnu|node-.*)$/
}

BEGIN { RS = ""; FS = "\n" }

{
  name = ""
  delete field
  for (i = 1; i <= NF; i++)
    if (match($i, /^[A-Za-z0-9-]+: /))
      field[substr($i, 1, RLENGTH - 2)] = substr($i, RLENGTH + 1)
  name = field["Package"]
  if (name in version) next
  version[name] = field["Version"]
  size[name] = field["Size"]
  sum[name] = field["SHA256"]
  wants[name] = field["Pre-Depends"] ", " field["Depends"]
  file[name] = name "_" field["Version"] "_" field["Architecture"] ".deb"
  gsub(/:/, ".", file[name])
  n = split(field["Provides"], provided, /, */)
  for (i = 1; i <= n; i++) {
    sub(/ .*/, "", provided[i])
    provider[provided[i]] = name
  }
}

END {
  count = split(roots, queue, " ")
  for (i = 1; i <= count; i++) seen[queue[i]] = 1
  for (i = 1; i <= count; i++) {
    name = queue[i]
    if (!(name in version)) {
      print "depend.awk: no record of " name > "/dev/stderr"
      exit 1
    }
    line = ""
    delete listed
    n = split(wants[name], clause, /, */)
    for (j = 1; j <= n; j++) {
      # The first alternative that the solution has.
      dep = ""
      m = split(clause[j], alternative, / *\| */)
      for (k = 1; k <= m; k++) {
        dep = alternative[k]
        sub(/[ :(].*/, "", dep)
        if (!(dep in version) && (dep in provider)) dep = provider[dep]
        if (dep in version) break
      }
      if (!(dep in version) || !follow(dep) || dep == name || listed[dep]++) continue
      line = line (line == "" ? "" : ",") dep
      if (!seen[dep]++) queue[++count] = dep
    }
    print name, version[name], file[name], size[name], sum[name], (line == "" ? "-" : line)
  }
}
