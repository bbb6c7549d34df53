package conformance

import (
	"context"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ledger is what a worker knows of its snapshots: those whose call was answered, and those whose call was not.
type ledger struct {
	kinds   map[string]snapshots.Kind // of what must be there
	pending map[string]bool           // what may be there or not
}

func newLedger() *ledger {
	return &ledger{kinds: map[string]snapshots.Kind{}, pending: map[string]bool{}}
}

// worker makes and removes snapshots with names of its own.
type worker struct {
	*ledger
	name   string
	random *rand.Rand
	next   int
}

// of is one of the worker's own snapshots of a kind, if there is one.
func (w *worker) of(kind snapshots.Kind) string {
	found := []string{}
	for name, is := range w.kinds {
		if is == kind {
			found = append(found, name)
		}
	}
	if len(found) == 0 {
		return ""
	}
	slices.Sort(found)
	return found[w.random.Intn(len(found))]
}

// step makes one call. It says whether the daemon answered.
func (w *worker) step(ctx context.Context, s snapshots.Snapshotter) (answered bool, err error) {
	w.next++
	name := fmt.Sprintf("%s %d", w.name, w.next)
	active, view, committed := w.of(snapshots.KindActive), w.of(snapshots.KindView), w.of(snapshots.KindCommitted)
	done := func(err error, names ...string) bool {
		if isSilence(err) {
			for _, name := range names {
				delete(w.kinds, name)
				w.pending[name] = true
			}
			return false
		}
		return true
	}
	switch choice := w.random.Intn(10); {
	case choice < 2 && active != "":
		err = s.Commit(ctx, name, active)
		if answered = done(err, active, name); answered && err == nil {
			delete(w.kinds, active)
			w.kinds[name] = snapshots.KindCommitted
		}
	case choice < 4 && committed != "":
		_, err = s.View(ctx, name, committed)
		if answered = done(err, name); answered && err == nil {
			w.kinds[name] = snapshots.KindView
		}
	case choice < 7 && (view != "" || active != ""):
		if view == "" || (active != "" && choice == 6) {
			view = active
		}
		err = s.Remove(ctx, view)
		if answered = done(err, view); answered && err == nil {
			delete(w.kinds, view)
		}
	case choice == 7 && committed != "":
		err = s.Remove(ctx, committed)
		answered = done(err, committed)
		if errdefs.IsFailedPrecondition(err) {
			err = nil
		} else if answered && err == nil {
			delete(w.kinds, committed)
		}
	default:
		parent := committed
		if choice == 9 {
			parent = ""
		}
		_, err = s.Prepare(ctx, name, parent)
		if answered = done(err, name); answered && err == nil {
			w.kinds[name] = snapshots.KindActive
		}
	}
	return answered, err
}

// isSilence is whether an error is no answer of the daemon's, but the end of the connection.
func isSilence(err error) bool {
	code := status.Code(errgrpc.ToGRPC(err))
	return code == codes.Unavailable || code == codes.Canceled
}

// check looks for everything that was acknowledged, for its directories, and for nothing else.
func (l *ledger) check(t *testing.T, d *daemon) {
	t.Helper()
	s := subject{d.snapshotter(), d.root(), d}
	infos := list(t, s)
	for name, kind := range l.kinds {
		if info, ok := infos[name]; !ok || info.Kind != kind {
			t.Errorf("%q was acknowledged as %s, and is %v", name, kind, info)
		}
	}
	for name := range infos {
		if _, ok := l.kinds[name]; !ok && !l.pending[name] {
			t.Errorf("%q is there, and was not asked for, or removed", name)
		}
	}
	checkDirectories(t, s, infos)
	cleanUp(t, s)
	if left := s.directories(t); len(left) != len(infos) {
		t.Errorf("after Cleanup %d snapshots have %d directories", len(infos), len(left))
	}
	checkDirectories(t, s, infos)
}

// checkDirectories looks for the directories of all snapshots; the settings must have labels name them.
func checkDirectories(t *testing.T, s subject, infos map[string]snapshots.Info) {
	t.Helper()
	seen := map[string]string{}
	for name, info := range infos {
		fs := info.Labels[upperdir]
		if other, ok := seen[fs]; ok || filepath.Dir(filepath.Dir(fs)) != filepath.Join(s.root, "snapshots") {
			t.Errorf("%q has the directory %q, as has %q", name, fs, other)
		}
		seen[fs] = name
		want := []string{fs}
		if info.Kind == snapshots.KindActive {
			want = append(want, filepath.Join(filepath.Dir(fs), "work"))
		}
		for _, path := range want {
			if info, err := os.Stat(path); err != nil || !info.IsDir() {
				t.Errorf("%q lacks its directory: %v", name, err)
			}
		}
		if info.Parent != "" {
			if parent, ok := infos[info.Parent]; !ok || parent.Kind != snapshots.KindCommitted {
				t.Errorf("the parent of %q is %v", name, parent)
			}
		}
	}
}

// TestKilledUnderLoad kills the daemon at random moments of 2,000 calls of 64 workers, again and again.
func TestKilledUnderLoad(t *testing.T) {
	const workers, calls = 64, 2000
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewSource(seed))
	prefix := directory(t)
	node := settings{upperdirLabel: true}
	d, err := startDaemon(prefix, node)
	if err != nil {
		t.Fatal(err)
	}
	var made atomic.Int64
	crew := []*worker{}
	for i := range workers {
		crew = append(crew, &worker{newLedger(), fmt.Sprint("worker ", i), rand.New(rand.NewSource(seed + int64(i))), 0})
	}
	kills := 0
	for made.Load() < calls {
		kills++
		killAt := made.Load() + 20 + random.Int63n(calls/8)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		var work sync.WaitGroup
		for _, w := range crew {
			work.Go(func() {
				for {
					answered, err := w.step(ctx, d.snapshotter())
					if !answered {
						return
					}
					if err != nil {
						t.Errorf("%s: %v", w.name, err)
						return
					}
					made.Add(1)
				}
			})
		}
		for made.Load() < killAt && ctx.Err() == nil {
			time.Sleep(time.Duration(random.Intn(2000)) * time.Microsecond)
		}
		if err := d.kill(); err != nil {
			t.Fatal(err)
		}
		work.Wait()
		cancel()
		if d, err = startDaemon(prefix, node); err != nil {
			t.Fatal(err)
		}
		known := newLedger()
		for _, w := range crew {
			known.add(w.ledger)
		}
		known.check(t, d)
		if t.Failed() {
			break
		}
		// What no answer told is now known.
		infos := list(t, d.snapshotter())
		for _, w := range crew {
			w.settle(infos)
		}
	}
	t.Logf("%d calls, %d kills", made.Load(), kills)
	suiteOn(t, d)
}

// add takes over what another ledger knows.
func (l *ledger) add(other *ledger) {
	for name, kind := range other.kinds {
		l.kinds[name] = kind
	}
	for name := range other.pending {
		l.pending[name] = true
	}
}

// settle takes what is there for what is pending.
func (l *ledger) settle(infos map[string]snapshots.Info) {
	for name := range l.pending {
		if info, ok := infos[name]; ok {
			l.kinds[name] = info.Kind
		}
	}
	clear(l.pending)
}

// suiteOn runs containerd's suite on what a fault has left, with a new daemon.
func suiteOn(t *testing.T, d *daemon) {
	t.Helper()
	if err := d.stop(); err != nil {
		t.Error(err)
	}
	// The suite does not expect labels that it has not set.
	d, err := startDaemon(d.prefix, settings{})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("containerd's own suite", func(t *testing.T) {
		testsuite.SnapshotterSuite(t, "overlayfs", func(context.Context, string) (snapshots.Snapshotter, func() error, error) {
			return d.snapshotter(), nil, nil
		})
	})
	if err := d.stop(); err != nil {
		t.Error(err)
	}
}

// TestKilledAtEachStep lets strace kill the daemon when a thread of it makes the Nth call of a kind, for N = 1, 2, 3...
// until a whole life of snapshots comes through.
func TestKilledAtEachStep(t *testing.T) {
	for name, c := range map[string]struct {
		calls string
		least int // kills; strace counts the calls of each thread, and they share the work anew each time
	}{
		"when it makes a directory": {"mkdir,mkdirat", 3},
		"when it renames":           {"rename,renameat,renameat2", 2},
		"when it writes":            {"pwrite64", 3},
		"when it synchronises":      {"fsync,fdatasync", 2},
		"when it removes":           {"unlink,unlinkat,rmdir", 1},
		"when it looks":             {"statx,newfstatat", 2},
		"when it opens":             {"openat", 2},
		"when it answers":           {"sendto,sendmsg,writev", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			prefix := directory(t)
			node := settings{upperdirLabel: true}
			all := newLedger()
			kills := 0
			for occurrence := 1; ; occurrence++ {
				d, err := startDaemon(prefix, node)
				if err != nil {
					t.Fatal(err)
				}
				strace := killOn(t, d, fmt.Sprintf("%s:signal=KILL:when=%d", c.calls, occurrence))
				through := lifeOfSnapshots(t.Context(), t, d, all, fmt.Sprintf("life %d: ", occurrence))
				if !through {
					kills++
					<-d.ended
					d.conn.Close()
				} else if err := d.kill(); err != nil {
					t.Fatal(err)
				}
				strace.Wait()
				if d, err = startDaemon(prefix, node); err != nil {
					t.Fatal(err)
				}
				all.check(t, d)
				all.settle(list(t, d.snapshotter()))
				if err := d.stop(); err != nil {
					t.Fatal(err)
				}
				if t.Failed() {
					t.Fatalf("after the kill at call %d", occurrence)
				}
				if through {
					break
				}
			}
			t.Logf("%d kills", kills)
			if kills < c.least {
				t.Errorf("it was killed %d times", kills)
			}
		})
	}
}

// killOn attaches strace to all threads of the daemon.
func killOn(t *testing.T, d *daemon, injection string) *exec.Cmd {
	t.Helper()
	output := filepath.Join(d.prefix, "strace.log")
	os.Remove(output)
	calls, _, _ := strings.Cut(injection, ":")
	command := exec.Command("strace", "--follow-forks", "--trace="+calls, "--inject="+injection, "--output="+output,
		"--attach="+fmt.Sprint(d.command.Process.Pid))
	messages, err := command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	// It says so once it has attached itself.
	text := make([]byte, 4096)
	if n, err := messages.Read(text); err != nil || !strings.Contains(string(text[:n]), "attached") {
		t.Fatalf("strace does not attach itself: %s, %v", text[:n], err)
	}
	go func() {
		for err == nil {
			_, err = messages.Read(text)
		}
	}()
	return command
}

// lifeOfSnapshots does once everything that changes something; it says whether the daemon lived through it.
func lifeOfSnapshots(ctx context.Context, t *testing.T, d *daemon, l *ledger, prefix string) bool {
	s := d.snapshotter()
	for _, step := range []struct {
		call           func() error
		removed, added string
		kind           snapshots.Kind
	}{
		{func() error { _, err := s.Prepare(ctx, prefix+"key", ""); return err }, "", "key", snapshots.KindActive},
		{func() error { return s.Commit(ctx, prefix+"layer", prefix+"key") }, "key", "layer", snapshots.KindCommitted},
		{func() error { _, err := s.Prepare(ctx, prefix+"key", prefix+"layer"); return err }, "", "key", snapshots.KindActive},
		{func() error { _, err := s.View(ctx, prefix+"view", prefix+"layer"); return err }, "", "view", snapshots.KindView},
		{func() error {
			_, err := s.Update(ctx, snapshots.Info{Name: prefix + "view", Labels: map[string]string{"a": "b"}}, "labels.a")
			return err
		}, "", "", 0},
		{func() error { return s.Commit(ctx, prefix+"top", prefix+"key") }, "key", "top", snapshots.KindCommitted},
		{func() error { return s.Remove(ctx, prefix+"view") }, "view", "", 0},
		{func() error { return s.Remove(ctx, prefix+"top") }, "top", "", 0},
		{func() error { return s.(snapshots.Cleaner).Cleanup(ctx) }, "", "", 0},
	} {
		err := step.call()
		if err != nil {
			for _, name := range []string{step.removed, step.added} {
				if name != "" {
					delete(l.kinds, prefix+name)
					l.pending[prefix+name] = true
				}
			}
			if !isSilence(err) {
				t.Error(err)
			}
			return false
		}
		if step.removed != "" {
			delete(l.kinds, prefix+step.removed)
		}
		if step.added != "" {
			l.kinds[prefix+step.added] = step.kind
		}
	}
	return true
}
