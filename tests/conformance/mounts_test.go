package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity/fs/fstest"
)

// upperdir is containerd's label for where a snapshot's own files are.
const upperdir = "containerd.io/snapshot/overlay.upperdir"

// indexOff is what overlayfs appends where the kernel can keep an index.
func indexOff() []string {
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err != nil {
		return nil
	}
	return []string{"index=off"}
}

func TestMounts(t *testing.T) {
	for name, c := range map[string]struct {
		set   []string
		added []string
	}{
		"as they are":                     {nil, indexOff()},
		"volatile":                        {[]string{"volatile"}, append([]string{"volatile"}, indexOff()...)},
		"with several options":            {[]string{"volatile", "xino=off"}, append([]string{"volatile", "xino=off"}, indexOff()...)},
		"with an index of the node's own": {[]string{"index=on", "nfs_export=on"}, []string{"index=on", "nfs_export=on"}},
		"with the user's attributes":      {[]string{"userxattr"}, append([]string{"userxattr"}, indexOff()...)},
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, settings{mountOptions: c.set}, func(t *testing.T, s subject) {
				mountsOfEachKind(t, s, c.added)
			})
		})
	}
}

func mountsOfEachKind(t *testing.T, s subject, added []string) {
	commitEmpty(t, s, "bottom", "")    // number 1
	commitEmpty(t, s, "top", "bottom") // number 2
	fs := func(number int) string { return s.directory(number, "fs") }
	bind := func(number int, option string) mount.Mount {
		return mount.Mount{Type: "bind", Source: fs(number), Options: []string{option, "rbind"}}
	}
	overlay := func(options ...string) mount.Mount {
		return mount.Mount{Type: "overlay", Source: "overlay", Options: append(options, added...)}
	}
	for i, c := range []struct {
		name   string
		make   func(subject, *testing.T, string, string) []mount.Mount
		parent string
		want   func(number int) mount.Mount
	}{
		{"a first layer is bound", prepare, "", func(number int) mount.Mount {
			return bind(number, "rw")
		}},
		{"a view of nothing is bound, read-only", view, "", func(number int) mount.Mount {
			return bind(number, "ro")
		}},
		{"a view of one layer binds it, read-only", view, "bottom", func(int) mount.Mount {
			return bind(1, "ro")
		}},
		{"a view of two layers is an overlay that cannot be written", view, "top", func(int) mount.Mount {
			return overlay("lowerdir=" + fs(2) + ":" + fs(1))
		}},
		{"a second layer is an overlay", prepare, "bottom", func(number int) mount.Mount {
			return overlay("workdir="+s.directory(number, "work"), "upperdir="+fs(number), "lowerdir="+fs(1))
		}},
		{"a third layer is an overlay, the nearest parent first", prepare, "top", func(number int) mount.Mount {
			return overlay("workdir="+s.directory(number, "work"), "upperdir="+fs(number), "lowerdir="+fs(2)+":"+fs(1))
		}},
	} {
		want := []mount.Mount{c.want(3 + i)}
		key := fmt.Sprint("key ", i)
		if got := c.make(s, t, key, c.parent); !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %v\nwant %v", c.name, got, want)
		}
		if got, err := s.Mounts(t.Context(), key); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s, asked again:\n got %v, %v\nwant %v", c.name, got, err, want)
		}
	}
}

func commitEmpty(t *testing.T, s subject, name, parent string) {
	t.Helper()
	prepare(s, t, "key of "+name, parent)
	if err := s.Commit(t.Context(), name, "key of "+name); err != nil {
		t.Fatal(err)
	}
}

func prepare(s subject, t *testing.T, key, parent string) []mount.Mount {
	t.Helper()
	mounts, err := s.Prepare(t.Context(), key, parent)
	if err != nil {
		t.Fatal(err)
	}
	return mounts
}

func view(s subject, t *testing.T, key, parent string) []mount.Mount {
	t.Helper()
	mounts, err := s.View(t.Context(), key, parent)
	if err != nil {
		t.Fatal(err)
	}
	return mounts
}

// TestNewDirectories looks at what a mount and containerd's differ rely on.
func TestNewDirectories(t *testing.T) {
	onBoth(t, settings{}, func(t *testing.T, s subject) {
		prepare(s, t, "active", "")
		view(s, t, "view", "")
		for path, want := range map[string]string{
			s.directory(1, "fs"):   "drwxr-xr-x",
			s.directory(1, "work"): "drwx--x--x",
			s.directory(2, "fs"):   "drwxr-xr-x",
			s.directory(2, "work"): "absent",
		} {
			got := "absent"
			if info, err := os.Lstat(path); err == nil {
				got = info.Mode().String()
			}
			if got != want {
				t.Errorf("%s is %s, not %s", path, got, want)
			}
		}
		// No other user may reach a container's setuid files through the host.
		closed := false
		for path := s.directory(1); path != filepath.Dir(s.root); path = filepath.Dir(path) {
			info, err := os.Lstat(path)
			if err != nil {
				t.Fatal(err)
			}
			closed = closed || info.Mode().Perm() == 0o700
		}
		if !closed {
			t.Error("other users can reach the snapshots")
		}
	})
}

func TestLayersAreReadThroughTheirMounts(t *testing.T) {
	onBoth(t, settings{}, func(t *testing.T, s subject) {
		commitLayer(t, s, "bottom", "",
			fstest.CreateDir("/d", 0o755),
			fstest.CreateFile("/d/kept", []byte("kept"), 0o640),
			fstest.CreateFile("/d/replaced", []byte("old"), 0o644),
			fstest.CreateFile("/d/removed", nil, 0o644),
			fstest.CreateDir("/opaque", 0o700),
			fstest.CreateFile("/opaque/hidden", nil, 0o600),
			fstest.CreateFile("/linked", []byte("one"), 0o600),
			fstest.Link("/linked", "/d/link"))
		top := []fstest.Applier{
			fstest.CreateFile("/d/replaced", []byte("new"), 0o600),
			fstest.RemoveAll("/d/removed"),
			fstest.RemoveAll("/opaque"),
			fstest.CreateDir("/opaque", 0o711),
			fstest.CreateFile("/opaque/seen", nil, 0o600),
			fstest.Chown("/d/kept", 1000, 1000),
			fstest.Rename("/linked", "/renamed"),
		}
		commitLayer(t, s, "top", "bottom", top...)
		expected := append([]fstest.Applier{
			fstest.CreateDir("/d", 0o755),
			fstest.CreateFile("/d/kept", []byte("kept"), 0o640),
			fstest.CreateFile("/d/replaced", []byte("old"), 0o644),
			fstest.CreateFile("/d/removed", nil, 0o644),
			fstest.CreateDir("/opaque", 0o700),
			fstest.CreateFile("/linked", []byte("one"), 0o600),
			fstest.CreateFile("/d/link", []byte("one"), 0o600),
		}, top...)
		withMounted(t, view(s, t, "view", "top"), func(target string) {
			if err := fstest.CheckDirectoryEqualWithApplier(target, fstest.Apply(expected...)); err != nil {
				t.Error(err)
			}
			if err := os.WriteFile(filepath.Join(target, "file"), nil, 0o600); err == nil {
				t.Error("a view can be written")
			}
		})
		withMounted(t, prepare(s, t, "active", "top"), func(target string) {
			if err := os.WriteFile(filepath.Join(target, "file"), []byte("x"), 0o600); err != nil {
				t.Error(err)
			}
		})
		if err := s.Commit(t.Context(), "third", "active"); err != nil {
			t.Fatal(err)
		}
		withMounted(t, view(s, t, "view of the third", "third"), func(target string) {
			expected := append(expected, fstest.CreateFile("/file", []byte("x"), 0o600))
			if err := fstest.CheckDirectoryEqualWithApplier(target, fstest.Apply(expected...)); err != nil {
				t.Error(err)
			}
		})
	})
}

func TestUpperdirLabel(t *testing.T) {
	for name, set := range map[string]bool{"is given": true, "is not given": false} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, settings{upperdirLabel: set}, func(t *testing.T, s subject) {
				ctx := t.Context()
				commitEmpty(t, s, "committed", "")
				prepare(s, t, "active", "committed")
				view(s, t, "view", "committed")
				if _, err := s.Update(ctx, snapshots.Info{Name: "view", Labels: map[string]string{"own": "label"}}); err != nil {
					t.Fatal(err)
				}
				infos := list(t, s)
				for i, name := range []string{"committed", "active", "view"} {
					want := ""
					if set {
						want = s.directory(1+i, "fs")
					}
					info, err := s.Stat(ctx, name)
					if err != nil {
						t.Fatal(err)
					}
					updated, err := s.Update(ctx, info, "labels.own")
					if err != nil {
						t.Fatal(err)
					}
					for way, labels := range map[string]map[string]string{
						"Stat": info.Labels, "Update": updated.Labels, "Walk": infos[name].Labels,
					} {
						if got := labels[upperdir]; got != want {
							t.Errorf("%s of %s: %q, not %q", way, name, got, want)
						}
					}
				}
				// It is not one that filters could find, or that is kept.
				if found := list(t, s, `labels."`+upperdir+`"`); len(found) != 0 {
					t.Errorf("filters find %s", strings.Join(names(found), ", "))
				}
			})
		})
	}
}
