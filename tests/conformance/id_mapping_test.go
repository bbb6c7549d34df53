package conformance

import (
	"os"
	"reflect"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// mapped are the labels of a snapshot for a user namespace; a label that is empty is not given.
func mapped(uids, gids string) snapshots.Opt {
	labels := map[string]string{}
	if uids != "" {
		labels[snapshots.LabelSnapshotUIDMapping] = uids
	}
	if gids != "" {
		labels[snapshots.LabelSnapshotGIDMapping] = gids
	}
	return snapshots.WithLabels(labels)
}

type owner struct{ uid, gid uint32 }

func ownerOf(t *testing.T, path string) owner {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	stat := info.Sys().(*syscall.Stat_t)
	return owner{stat.Uid, stat.Gid}
}

func TestMappedIDs(t *testing.T) {
	for name, c := range map[string]struct {
		uids, gids string
		root       owner
	}{
		"in one range":                        {"0:666:65536", "0:666:65536", owner{666, 666}},
		"in several ranges":                   {"0:666:1000,1000:6666:64536", "0:888:1000,1000:8888:64536", owner{666, 888}},
		"with root in a later range":          {"1000:6666:64536,0:666:1000", "1000:8888:64536,0:888:1000", owner{666, 888}},
		"to themselves":                       {"0:0:4294967294", "0:0:4294967294", owner{0, 0}},
		"of users alone":                      {"0:666:65536", "", owner{666, 0}},
		"of groups alone":                     {"", "0:888:65536", owner{0, 888}},
		"of root alone":                       {"0:666:1", "0:888:1", owner{666, 888}},
		"to the highest number":               {"0:4294967294:1", "0:4294967294:1", owner{4294967294, 4294967294}},
		"in a range that ends out of numbers": {"0:4294967294:2", "0:4294967294:2", owner{4294967294, 4294967294}},
	} {
		t.Run(name, func(t *testing.T) {
			for mode, remap := range map[string]bool{"by the mount": true, "by the directory alone": false} {
				t.Run(mode, func(t *testing.T) {
					onBoth(t, settings{remapIDs: remap}, func(t *testing.T, s subject) {
						options := []string{}
						if remap && c.uids != "" {
							options = append(options, "uidmap="+c.uids)
						}
						if remap && c.gids != "" {
							options = append(options, "gidmap="+c.gids)
						}
						mappedMounts(t, s, mapped(c.uids, c.gids), c.root, options)
					})
				})
			}
		})
	}
}

// mappedMounts looks at every kind of snapshot; `options` are those that the mapping adds to mounts.
func mappedMounts(t *testing.T, s subject, labels snapshots.Opt, root owner, options []string) {
	ctx := t.Context()
	with := func(more ...string) []string { return append(append([]string{}, options...), more...) }
	check := func(key string, directory int, owner owner, want []string) {
		t.Helper()
		mounts, err := s.Mounts(ctx, key)
		if err != nil || len(mounts) != 1 || !reflect.DeepEqual(mounts[0].Options, want) {
			t.Errorf("%s is mounted by %v, %v, not by %v", key, mounts, err, want)
		}
		if got := ownerOf(t, s.directory(directory, "fs")); got != owner {
			t.Errorf("%s is of %v, not of %v", key, got, owner)
		}
	}
	if _, err := s.Prepare(ctx, "first", "", labels); err != nil {
		t.Fatal(err)
	}
	check("first", 1, root, with("rw", "rbind"))
	if err := s.Commit(ctx, "layer", "first", labels); err != nil {
		t.Fatal(err)
	}
	if _, err := s.View(ctx, "view", "layer", labels); err != nil {
		t.Fatal(err)
	}
	check("view", 2, root, with("ro", "rbind"))
	if _, err := s.Prepare(ctx, "second", "layer", labels); err != nil {
		t.Fatal(err)
	}
	check("second", 3, root, append(with(
		"workdir="+s.directory(3, "work"), "upperdir="+s.directory(3, "fs"), "lowerdir="+s.directory(1, "fs")), indexOff()...))

	// Without labels a snapshot has its parent's owner; and none is mapped that has none to take after.
	if _, err := s.Prepare(ctx, "unlabelled", "layer"); err != nil {
		t.Fatal(err)
	}
	check("unlabelled", 4, root, append([]string{
		"workdir=" + s.directory(4, "work"), "upperdir=" + s.directory(4, "fs"), "lowerdir=" + s.directory(1, "fs")}, indexOff()...))
	prepare(s, t, "plain", "")
	check("plain", 5, owner{0, 0}, []string{"rw", "rbind"})
}

// Each mapping is refused whether the mounts would use it or not: the directory's owner comes from it.
func TestInvalidMappings(t *testing.T) {
	const good = "0:0:66666"
	cases := map[string][2]string{
		"negative users":                      {"-1:-1:-2", good},
		"negative groups":                     {good, "-1:-1:-2"},
		"negative both":                       {"-666:-666:-666", "-666:-666:-666"},
		"negative users in a later range":     {"1:1:1,-1:-1:-2", good},
		"negative groups in the first range":  {good, "-1:-1:-2,6:6:6"},
		"negative both in the first range":    {"-666:-666:-666,1:1:1", "-666:-666:-666,2:2:2"},
		"root in neither":                     {"666:666:666", "666:666:666"},
		"root not among the users":            {"666:0:65536", "0:0:65536"},
		"root not among the groups":           {"0:0:4294967294", "666:0:4294967294"},
		"a length beyond the numbers":         {"0:0:4294967295", good},
		"a start beyond the numbers":          {"0:4294967295:1", good},
		"a start of 64 bits":                  {good, "0:18446744073709551616:1"},
		"an empty range":                      {"0:666:0", good},
		"a range that wraps round":            {"4294967294:0:10", good},
		"text":                                {"root", good},
		"two numbers":                         {"0:0", good},
		"a missing number":                    {"0::1", good},
		"an empty range in the list":          {"0:0:1,", good},
		"nothing but a comma":                 {good, ","},
		"other separators":                    {"0 0 1", good},
		"a hexadecimal number":                {"0:0xff:1", good},
		"users without end":                   {repeated("1:1:1,", 1<<12), good},
		"a mount option that it would inject": {"0:0:1,rw", good},
	}
	for mode, remap := range map[string]bool{"by the mount": true, "by the directory alone": false} {
		t.Run(mode, func(t *testing.T) {
			onBoth(t, settings{remapIDs: remap}, func(t *testing.T, s subject) {
				for name, labels := range cases {
					for kind, make := range map[string]func() error{
						"Prepare": func() error {
							_, err := s.Prepare(t.Context(), "key", "", mapped(labels[0], labels[1]))
							return err
						},
						"View": func() error {
							_, err := s.View(t.Context(), "key", "", mapped(labels[0], labels[1]))
							return err
						},
					} {
						err := make()
						if err == nil || (s.isOurs() && !errdefs.IsInvalidArgument(err)) {
							t.Errorf("%s of %s: %v", kind, name, err)
						}
						if _, err := s.Stat(t.Context(), "key"); !errdefs.IsNotFound(err) {
							t.Errorf("%s of %s leaves a snapshot: %v", kind, name, err)
							s.Remove(t.Context(), "key")
						}
					}
				}
				if left := s.directories(t); len(left) != 0 {
					t.Errorf("directories are left: %v", left)
				}
			})
		})
	}
}
