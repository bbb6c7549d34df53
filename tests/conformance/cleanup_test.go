package conformance

import (
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity/fs/fstest"
)

func cleanUp(t *testing.T, s subject) {
	t.Helper()
	if err := s.Snapshotter.(snapshots.Cleaner).Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestRemoval removes snapshots, whose directories go later: at the latest with Cleanup.
func TestRemoval(t *testing.T) {
	onBoth(t, settings{}, func(t *testing.T, s subject) {
		population(t, s)
		for _, key := range []string{"active", "view", "first", "nothing", "top", "bottom"} {
			if err := s.Remove(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
		// The key is free at once, and the old directory is not taken for the new one.
		mounts := prepare(s, t, "active", "")
		if s.isOurs() {
			eventually(t, func() bool { return len(s.directories(t)) == 1 })
		}
		cleanUp(t, s)
		if left := s.directories(t); !slices.Equal(left, []string{"7"}) || mounts[0].Source != s.directory(7, "fs") {
			t.Errorf("left are %v, and the new one is %v", left, mounts)
		}
	})
}

// eventually waits for what the daemon does by itself.
func eventually(t *testing.T, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error("it does not happen")
			return
		}
	}
}

func TestCleanup(t *testing.T) {
	onBoth(t, settings{}, func(t *testing.T, s subject) {
		population(t, s)
		kept := s.directories(t)
		for _, orphan := range []fstest.Applier{
			fstest.CreateDir("/999", 0o700),
			fstest.CreateDir("/999/fs", 0),
			fstest.CreateFile("/999/fs/file", nil, 0),
			// What lies elsewhere stays, even if one snapshot was a link there.
			fstest.Symlink("../../elsewhere", "/1000"),
		} {
			if err := orphan.Apply(s.root + "/snapshots"); err != nil {
				t.Fatal(err)
			}
		}
		elsewhere := s.root + "/elsewhere"
		if err := os.Mkdir(elsewhere, 0o700); err != nil {
			t.Fatal(err)
		}
		before := list(t, s)
		for range 2 {
			cleanUp(t, s)
			if left := s.directories(t); !slices.Equal(left, kept) {
				t.Errorf("there are %v, not %v", left, kept)
			}
		}
		if _, err := os.Stat(elsewhere); err != nil {
			t.Error(err)
		}
		if after := list(t, s); len(after) != len(before) {
			t.Errorf("there were %v, and there are %v", before, after)
		}
	})
}

// TestCleanupBesideWork would see a directory removed that is only just in the making.
func TestCleanupBesideWork(t *testing.T) {
	onBoth(t, settings{}, func(t *testing.T, s subject) {
		// containerd's own cannot clean up before the first snapshot.
		commitEmpty(t, s, "first", "")
		var work, cleaning sync.WaitGroup
		done := make(chan struct{})
		for range 2 {
			cleaning.Go(func() {
				for {
					select {
					case <-done:
						return
					default:
						cleanUp(t, s)
					}
				}
			})
		}
		for worker := range 8 {
			work.Go(func() {
				for i := range 15 {
					key, name := fmt.Sprintf("key %d %d", worker, i), fmt.Sprintf("name %d %d", worker, i)
					parent := ""
					if i > 0 {
						parent = fmt.Sprintf("name %d %d", worker, i-1)
					}
					if _, err := s.Prepare(t.Context(), key, parent); err != nil {
						t.Error(err)
						return
					}
					if err := s.Commit(t.Context(), name, key); err != nil {
						t.Error(err)
						return
					}
					if _, err := s.View(t.Context(), key, name); err != nil {
						t.Error(err)
						return
					}
					if err := s.Remove(t.Context(), key); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		work.Wait()
		close(done)
		cleaning.Wait()
		cleanUp(t, s)
		if got, want := len(s.directories(t)), len(list(t, s)); got != want {
			t.Errorf("%d snapshots have %d directories", want, got)
		}
	})
}
