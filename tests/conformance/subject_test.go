package conformance

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/continuity/fs/fstest"
)

// subject is a snapshotter under test.
type subject struct {
	snapshots.Snapshotter
	root   string  // where its snapshots lie
	daemon *daemon // none when it is containerd's own
}

// isOurs is whether the subject is the daemon. What containerd's own overlayfs gets wrong is asked of ours alone.
func (s subject) isOurs() bool { return s.daemon != nil }

// directory is that of the snapshot with this number; numbers are given in the order of preparation.
func (s subject) directory(number int, names ...string) string {
	return filepath.Join(append([]string{s.root, "snapshots", fmt.Sprint(number)}, names...)...)
}

// directories are the names of all snapshots' directories.
func (s subject) directories(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.root, "snapshots"))
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

// onBoth runs a test on the daemon and on containerd's own overlayfs, which shows that the test itself is right.
func onBoth(t *testing.T, s settings, test func(*testing.T, subject)) {
	t.Helper()
	t.Run("nixenv", func(t *testing.T) {
		t.Parallel()
		test(t, newSubject(t, s))
	})
	t.Run("overlayfs", func(t *testing.T) {
		t.Parallel()
		test(t, newReference(t, s))
	})
}

// newSubject starts a daemon for a test.
func newSubject(t *testing.T, s settings) subject {
	t.Helper()
	d, err := startDaemon(directory(t), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.stop(); err != nil {
			t.Error(err)
		}
	})
	return subject{d.snapshotter(), d.root(), d}
}

// newReference is containerd's own overlayfs, as containerd itself sets it up.
func newReference(t *testing.T, s settings) subject {
	t.Helper()
	options := []overlay.Opt{overlay.AsynchronousRemove, overlay.WithMountOptions(s.mountOptions)}
	if s.upperdirLabel {
		options = append(options, overlay.WithUpperdirLabel)
	}
	if s.remapIDs {
		options = append(options, overlay.WithRemapIDs)
	}
	root := directory(t)
	snapshotter, err := overlay.NewSnapshotter(root, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { snapshotter.Close() })
	return subject{snapshotter, root, nil}
}

// directory is a test's own. Its name is short, since it holds a socket.
func directory(t *testing.T) string {
	t.Helper()
	path, err := os.MkdirTemp("", "nixenv-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(path); err != nil {
			t.Error(err)
		}
	})
	return path
}

// withMounted runs a function on mounted mounts.
func withMounted(t *testing.T, mounts []mount.Mount, use func(target string)) {
	t.Helper()
	target := directory(t)
	if err := mount.All(mounts, target); err != nil {
		t.Fatalf("cannot mount %v: %v", mounts, err)
	}
	defer func() {
		if err := mount.UnmountAll(target, 0); err != nil {
			t.Error(err)
		}
	}()
	use(target)
}

// commitLayer makes the snapshot `name` of a content that is applied to its mount.
func commitLayer(t *testing.T, s subject, name, parent string, content ...fstest.Applier) {
	t.Helper()
	mounts, err := s.Prepare(t.Context(), name+" in the making", parent)
	if err != nil {
		t.Fatal(err)
	}
	if len(content) > 0 {
		withMounted(t, mounts, func(target string) {
			if err := fstest.Apply(content...).Apply(target); err != nil {
				t.Fatal(err)
			}
		})
	}
	if err := s.Commit(t.Context(), name, name+" in the making"); err != nil {
		t.Fatal(err)
	}
}

// list is what Walk gives, by name.
func list(t *testing.T, s snapshots.Snapshotter, filters ...string) map[string]snapshots.Info {
	t.Helper()
	infos := map[string]snapshots.Info{}
	err := s.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
		if _, seen := infos[info.Name]; seen {
			t.Errorf("%q is listed twice", info.Name)
		}
		infos[info.Name] = info
		return nil
	}, filters...)
	if err != nil {
		t.Fatal(err)
	}
	return infos
}

// names are the keys of a map, sorted.
func names[V any](of map[string]V) []string { return slices.Sorted(maps.Keys(of)) }
