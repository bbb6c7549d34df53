package conformance

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity/fs/fstest"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// populated is the prefix of a daemon that has had snapshots and has ended.
func populated(t *testing.T) string {
	t.Helper()
	prefix := directory(t)
	d, err := startDaemon(prefix, settings{})
	if err != nil {
		t.Fatal(err)
	}
	s := subject{d.snapshotter(), d.root(), d}
	for i := range 200 {
		prepare(s, t, fmt.Sprintf("many %d %s", i, repeated("x", 100)), "")
	}
	population(t, s)
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	return prefix
}

// contents are the names and sizes of all files below a directory.
func contents(t *testing.T, root string) map[string]int64 {
	t.Helper()
	found := map[string]int64{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil && !entry.IsDir() {
			found[path] = info.Size()
		} else {
			found[path] = 0
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestDamagedDatabase expects a daemon that does not start, says what to do, and touches nothing.
func TestDamagedDatabase(t *testing.T) {
	overwrite := func(offset int64, text string) func(path string) error {
		return func(path string) error {
			file, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = file.WriteAt([]byte(text), offset)
			return errors.Join(err, file.Close())
		}
	}
	for name, c := range map[string]struct {
		damage func(path string) error
		says   string
	}{
		"text instead":         {func(path string) error { return os.WriteFile(path, []byte(repeated("text\n", 1000)), 0o600) }, "damaged"},
		"a damaged header":     {overwrite(0, repeated("\x00", 64)), "damaged"},
		"damaged pages":        {overwrite(4096*2, repeated("\xa5", 4096*3)), "damaged"},
		"half of it":           {func(path string) error { return os.Truncate(path, 4096*4) }, "damaged"},
		"an end within a page": {func(path string) error { return os.Truncate(path, 4096*4+100) }, "damaged"},
		"none of it":           {func(path string) error { return os.Truncate(path, 0) }, "missing"},
		"no file":              {os.Remove, "missing"},
		"a directory":          {func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }, "cannot open"},
		"a later version":      {overwrite(60, "\x00\x00\x00\x63"), "version 99"},
		"another program's":    {overwrite(60, "\x00\x00\x00\x00"), "another program"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			prefix := populated(t)
			root := snapshotterRoot(prefix)
			database := filepath.Join(root, "metadata.db")
			copied, err := os.ReadFile(database)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.damage(database); err != nil {
				t.Fatal(err)
			}
			before := contents(t, root)
			for range 2 {
				d, err := startDaemon(prefix, settings{})
				if err == nil {
					t.Errorf("it starts:\n%s", d.log())
					d.stop()
				} else if said := err.Error(); !strings.Contains(said, database) || !strings.Contains(said, c.says) {
					t.Errorf("it does not say %q of %s: %s", c.says, database, said)
				}
			}
			after := contents(t, root)
			// SQLite may leave its index of the log, which says nothing.
			for _, file := range []string{database + "-shm", database + "-wal"} {
				delete(before, file)
				delete(after, file)
			}
			if !reflect.DeepEqual(before, after) {
				t.Errorf("there was %v, and there is %v", before, after)
			}

			// As the message says: with a copy put back, all is well.
			if err := os.RemoveAll(database); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(database, copied, 0o600); err != nil {
				t.Fatal(err)
			}
			d, err := startDaemon(prefix, settings{})
			if err != nil {
				t.Fatal(err)
			}
			if infos := list(t, d.snapshotter()); len(infos) != 206 {
				t.Errorf("%d snapshots are left", len(infos))
			}
			if err := d.stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

// onSmallDisk starts a daemon whose snapshots lie on a file system of their own.
func onSmallDisk(t *testing.T, options string) (d *daemon, s subject, disk string) {
	t.Helper()
	prefix := directory(t)
	disk = snapshotterRoot(prefix)
	if err := os.MkdirAll(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	d, err := startDaemon(prefix, settings{upperdirLabel: true})
	if err != nil {
		t.Fatal(err)
	}
	return d, subject{d.snapshotter(), d.root(), d}, disk
}

func isExhausted(err error) bool {
	return status.Code(errgrpc.ToGRPC(err)) == codes.ResourceExhausted
}

// TestFullDisk fills the disk with a container's files, and with snapshots.
func TestFullDisk(t *testing.T) {
	for name, c := range map[string]struct {
		options string
		fill    func(t *testing.T, s subject) error
	}{
		"of bytes": {"size=4m", func(t *testing.T, s subject) error {
			file, err := os.Create(filepath.Join(s.directory(1, "fs"), "large"))
			if err != nil {
				return err
			}
			defer file.Close()
			for err == nil {
				_, err = file.Write(make([]byte, 4096))
			}
			return err
		}},
		"of files": {"size=64m,nr_inodes=400", func(t *testing.T, s subject) error {
			for i := 0; ; i++ {
				if err := os.WriteFile(filepath.Join(s.directory(1, "fs"), fmt.Sprint(i)), nil, 0o600); err != nil {
					return err
				}
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d, s, disk := onSmallDisk(t, c.options)
			ctx := t.Context()
			prepare(s, t, "large", "")
			commitEmpty(t, s, "layer", "")
			known := newLedger()
			known.kinds["large"], known.kinds["layer"] = snapshots.KindActive, snapshots.KindCommitted
			if err := c.fill(t, s); !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("the disk does not become full: %v", err)
			}
			refused := 0
			for i := range 300 {
				name := fmt.Sprint("key ", i)
				_, err := s.Prepare(ctx, name, "layer")
				switch {
				case err == nil:
					known.kinds[name] = snapshots.KindActive
				case !isExhausted(err):
					t.Fatalf("the disk is full, and Prepare ends with %v", err)
				case !strings.Contains(err.Error(), "full") && !strings.Contains(err.Error(), "space"):
					t.Fatalf("the message does not say what is wrong: %v", err)
				default:
					refused++
				}
			}
			if refused == 0 {
				t.Fatal("nothing is refused on a full disk")
			}
			t.Logf("%d of 300 are refused", refused)
			if _, err := s.Update(ctx, snapshots.Info{Name: "large", Labels: map[string]string{"l": repeated("x", 4000)}}); err != nil && !isExhausted(err) {
				t.Errorf("Update: %v", err)
			}
			if err := s.Commit(ctx, "committed", "large"); err == nil {
				delete(known.kinds, "large")
				known.kinds["committed"] = snapshots.KindCommitted
			} else if !isExhausted(err) {
				t.Errorf("Commit: %v", err)
			}
			// What is there can be read, and a new start finds it.
			known.check(t, d)
			if err := d.stop(); err != nil {
				t.Fatal(err)
			}
			d, err := startDaemon(d.prefix, settings{upperdirLabel: true})
			if err != nil {
				t.Fatalf("on a full disk the daemon does not start: %v", err)
			}
			s = subject{d.snapshotter(), d.root(), d}
			known.check(t, d)
			// Removal makes room.
			for name := range known.kinds {
				if name != "layer" {
					if err := s.Remove(ctx, name); err != nil {
						t.Fatalf("on a full disk %q cannot be removed: %v", name, err)
					}
				}
			}
			cleanUp(t, s)
			if left := s.directories(t); len(left) != 1 {
				t.Errorf("left are %v", left)
			}
			prepare(s, t, "new", "layer")
			if err := unix.Mount("", disk, "", unix.MS_REMOUNT, "size=256m,nr_inodes=100000"); err != nil {
				t.Fatal(err)
			}
			suiteOn(t, d)
		})
	}
}

// TestReadOnlyDisk makes the directories read-only while the daemon runs, and then the whole disk while it does not: the
// kernel refuses that for files that are open.
func TestReadOnlyDisk(t *testing.T) {
	isReadOnly := func(err error) bool {
		return err != nil && strings.Contains(strings.ToLower(err.Error()), "read-only")
	}
	d, s, disk := onSmallDisk(t, "size=256m")
	ctx := t.Context()
	population(t, s)
	directories := filepath.Join(disk, "snapshots")
	if err := errors.Join(
		unix.Mount(directories, directories, "", unix.MS_BIND, ""),
		unix.Mount("", directories, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""),
	); err != nil {
		t.Fatal(err)
	}
	before := list(t, s)
	if _, err := s.Prepare(ctx, "new", "top"); !isReadOnly(err) {
		t.Errorf("Prepare: %v", err)
	}
	if _, err := s.View(ctx, "new", "top"); !isReadOnly(err) {
		t.Errorf("View: %v", err)
	}
	if after := list(t, s); !reflect.DeepEqual(after, before) {
		t.Errorf("there was %v, and there is %v", before, after)
	}
	if mounts, err := s.Mounts(ctx, "view"); err != nil || len(mounts) != 1 {
		t.Errorf("a view is mounted by %v, %v", mounts, err)
	}
	// What can no longer be removed from disk now is removed later.
	if err := s.Remove(ctx, "first"); err != nil {
		t.Errorf("Remove: %v", err)
	}
	cleanUp(t, s)
	delete(before, "first")
	if err := unix.Unmount(directories, 0); err != nil {
		t.Fatal(err)
	}
	cleanUp(t, s)
	if left := s.directories(t); len(left) != len(before) {
		t.Errorf("%d snapshots have %d directories", len(before), len(left))
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}

	if err := unix.Mount("", disk, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if other, err := startDaemon(d.prefix, settings{}); err == nil {
		other.stop()
		t.Error("it starts on a read-only disk")
	} else if !isReadOnly(err) || !strings.Contains(err.Error(), disk) {
		t.Errorf("it does not say what is wrong: %v", err)
	}
	if err := unix.Mount("", disk, "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	d, err := startDaemon(d.prefix, settings{upperdirLabel: true})
	if err != nil {
		t.Fatal(err)
	}
	s = subject{d.snapshotter(), d.root(), d}
	if after := list(t, s); !reflect.DeepEqual(after, before) {
		t.Errorf("there was %v, and there is %v", before, after)
	}
	commitLayer(t, s, "new", "top", fstest.CreateFile("/file", nil, 0o600))
	suiteOn(t, d)
}

// TestLostDirectory removes a snapshot's directory behind the daemon's back.
func TestLostDirectory(t *testing.T) {
	s := newSubject(t, settings{})
	ctx := t.Context()
	population(t, s)
	if err := os.RemoveAll(s.directory(3)); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctx, "new", "active"); err == nil {
		t.Error("a snapshot without its directory is committed")
	}
	if _, err := s.Usage(ctx, "active"); err == nil {
		t.Error("a snapshot without its directory is measured")
	}
	if info, err := s.Stat(ctx, "active"); err != nil || info.Kind != snapshots.KindActive {
		t.Errorf("it is %v, %v", info, err)
	}
	if err := s.Remove(ctx, "active"); err != nil {
		t.Errorf("it cannot be removed: %v", err)
	}
	if _, err := s.Stat(ctx, "active"); !errdefs.IsNotFound(err) {
		t.Errorf("it is still there: %v", err)
	}
}
