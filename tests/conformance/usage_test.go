package conformance

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/continuity/fs/fstest"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// applier is a change of a tree that fstest does not know.
type applier func(root string) error

func (a applier) Apply(root string) error { return a(root) }

// sparse makes a file of parts, by turns data and holes, of these lengths in bytes.
func sparse(name string, parts ...int64) fstest.Applier {
	return applier(func(root string) (err error) {
		file, err := os.Create(filepath.Join(root, name))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, file.Close()) }()
		var end int64
		for i, length := range parts {
			if i%2 == 0 {
				if _, err := file.WriteAt([]byte(strings.Repeat("x", int(length))), end); err != nil {
					return err
				}
			}
			end += length
		}
		return file.Truncate(end)
	})
}

func node(name string, mode uint32) fstest.Applier {
	return applier(func(root string) error {
		return unix.Mknod(filepath.Join(root, name), mode|0o600, int(unix.Mkdev(1, 3)))
	})
}

func manyFiles(count, size int) fstest.Applier {
	appliers := []fstest.Applier{}
	for i := range count {
		appliers = append(appliers, fstest.CreateRandomFile(fmt.Sprintf("/file-%d", i), int64(i), int64(size), 0o644))
	}
	return fstest.Apply(appliers...)
}

// TestUsage compares with continuity, which containerd uses, and its figures with those of a file at a time.
func TestUsage(t *testing.T) {
	const block = 4096
	small := fstest.CreateRandomFile("/dir/file", 1, 5, 0o644)
	dir := fstest.CreateDir("/dir", 0o755)
	for name, c := range map[string]struct {
		content fstest.Applier
		inodes  int64
		bytes   int64 // of files; directories come in addition, where the file system counts them
	}{
		"of nothing":                      {fstest.Apply(), 1, 0},
		"of a small file":                 {fstest.Apply(dir, small), 3, block},
		"of files of all sizes":           {fstest.Apply(dir, small, fstest.CreateRandomFile("/1k", 2, 1024, 0o644), fstest.CreateRandomFile("/50k", 3, 50*1024, 0o644)), 5, 2*block + 13*block},
		"of hard links":                   {fstest.Apply(dir, fstest.CreateRandomFile("/dir/a", 1, 60*1024, 0o644), fstest.Link("/dir/a", "/dir/b"), fstest.Link("/dir/a", "/c")), 3, 15 * block},
		"of a sparse file":                {fstest.Apply(sparse("/a", 5, 1<<20, 5)), 2, 2 * block},
		"of a file that begins sparse":    {fstest.Apply(sparse("/a", 0, 1<<30, 1024)), 2, block},
		"of a file that is but a hole":    {fstest.Apply(sparse("/a", 0, 5<<30)), 2, 0},
		"of hard links to a sparse file":  {fstest.Apply(sparse("/a", 30*1024, 1<<30, 30*1024), fstest.Link("/a", "/b")), 2, 16 * block},
		"of symbolic links":               {fstest.Apply(fstest.Symlink("short", "/a"), fstest.Symlink("absent", "/b")), 3, 0},
		"of devices, pipes and sockets":   {fstest.Apply(node("/c", unix.S_IFCHR), node("/b", unix.S_IFBLK), node("/p", unix.S_IFIFO), node("/s", unix.S_IFSOCK)), 5, 0},
		"of what nobody may read":         {fstest.Apply(fstest.CreateDir("/d", 0), fstest.CreateFile("/d/f", []byte("x"), 0)), 3, block},
		"of directories in directories":   {fstest.Apply(fstest.CreateDir("/a", 0o755), fstest.CreateDir("/a/b", 0o755), fstest.CreateDir("/a/b/c", 0o755)), 4, 0},
		"of 500 files":                    {manyFiles(500, 10), 501, 500 * block},
		"of a file with attributes":       {fstest.Apply(fstest.CreateFile("/f", []byte("x"), 0o644), fstest.SetXAttr("/f", "user.name", "value")), 2, block},
		"of a file that has been removed": {fstest.Apply(fstest.CreateFile("/f", []byte("x"), 0o644), fstest.RemoveAll("/f")), 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, settings{}, func(t *testing.T, s subject) {
				if err := c.content.Apply(fsOf(s, t)); err != nil {
					t.Fatal(err)
				}
				usage := usageIs(t, s, "key", s.directory(1, "fs"))
				if usage.Inodes != c.inodes {
					t.Errorf("%d inodes, not %d", usage.Inodes, c.inodes)
				}
				if files := usage.Size - directoryBytes(t, s.directory(1, "fs")); files != c.bytes {
					t.Errorf("%d bytes in files, not %d", files, c.bytes)
				}
				if err := s.Commit(t.Context(), "name", "key"); err != nil {
					t.Fatal(err)
				}
				if got := usageIs(t, s, "name", s.directory(1, "fs")); got != usage {
					t.Errorf("committed it is %v, before it was %v", got, usage)
				}
			})
		})
	}
}

// fsOf makes the active snapshot "key", number 1, and says where its content lies.
func fsOf(s subject, t *testing.T) string {
	t.Helper()
	return prepare(s, t, "key", "")[0].Source
}

func directoryBytes(t *testing.T, root string) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(root, func(_ string, entry os.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			info, err := entry.Info()
			if err != nil {
				return err
			}
			bytes += info.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

func usageIs(t *testing.T, s subject, key, directory string) snapshots.Usage {
	t.Helper()
	usage, err := s.Usage(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	if want, err := fs.DiskUsage(t.Context(), directory); err != nil || usage != snapshots.Usage(want) {
		t.Errorf("usage of %s is %v, continuity says %v, %v", key, usage, want, err)
	}
	return usage
}

// TestUsageOfAnUpperLayer counts what overlayfs itself leaves there.
func TestUsageOfAnUpperLayer(t *testing.T) {
	for name, change := range map[string]fstest.Applier{
		"nothing":             fstest.Apply(),
		"a whiteout":          fstest.RemoveAll("/dir/a"),
		"an opaque directory": fstest.Apply(fstest.RemoveAll("/dir"), fstest.CreateDir("/dir", 0o755), fstest.CreateFile("/dir/c", nil, 0o600)),
		"a copied-up file":    fstest.Chmod("/dir/a", 0o600),
		"a broken hard link":  fstest.Chmod("/dir/b", 0o600),
		"a renamed file":      fstest.Rename("/dir/a", "/dir/c"),
	} {
		t.Run(name, func(t *testing.T) {
			onBoth(t, settings{}, func(t *testing.T, s subject) {
				commitLayer(t, s, "bottom", "", fstest.CreateDir("/dir", 0o755),
					fstest.CreateRandomFile("/dir/a", 1, 10_000, 0o644), fstest.Link("/dir/a", "/dir/b"))
				withMounted(t, prepare(s, t, "key", "bottom"), func(target string) {
					if err := change.Apply(target); err != nil {
						t.Fatal(err)
					}
					usageIs(t, s, "key", s.directory(2, "fs"))
				})
				usageIs(t, s, "key", s.directory(2, "fs"))
				if err := s.Commit(t.Context(), "top", "key"); err != nil {
					t.Fatal(err)
				}
				usageIs(t, s, "top", s.directory(2, "fs"))
			})
		})
	}
}

func TestUsageIsNotCountedAgain(t *testing.T) {
	onBoth(t, settings{}, func(t *testing.T, s subject) {
		commitLayer(t, s, "layer", "", fstest.CreateFile("/f", []byte("x"), 0o600))
		before := usageIs(t, s, "layer", s.directory(1, "fs"))
		if err := fstest.CreateFile("/g", []byte("x"), 0o600).Apply(s.directory(1, "fs")); err != nil {
			t.Fatal(err)
		}
		if after, err := s.Usage(t.Context(), "layer"); err != nil || after != before {
			t.Errorf("usage of a committed snapshot was %v and is %v, %v", before, after, err)
		}
		view(s, t, "view", "layer")
		if usage, err := s.Usage(t.Context(), "view"); err != nil || usage != (snapshots.Usage{}) {
			t.Errorf("a view uses %v, %v", usage, err)
		}
		if _, err := s.Usage(t.Context(), "unknown"); !errdefs.IsNotFound(err) {
			t.Errorf("usage of what is unknown: %v", err)
		}
	})
}
