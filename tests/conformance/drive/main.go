// drive measures snapshotters by containerd's own API and prints JSON: how long each round took, in milliseconds.
//
//	drive prepare-remove ROUNDS SNAPSHOTTER...   through containerd, the snapshotters in turn
//	drive list SOCKET SNAPSHOTS ROUNDS           a proxy plugin by itself, after it was given so many more snapshots
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"time"

	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	// pairs are prepared and removed in a round, and then collected as garbage: containerd removes late.
	pairs = 20
	// workers fill a snapshotter at the same time.
	workers = 16
	// base is the parent that every snapshot has.
	base = "the parent of all"
)

// kept keeps a snapshot from being garbage.
var kept = snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "2026-01-01T00:00:00Z"})

func main() {
	ctx := namespaces.WithNamespace(context.Background(), "default")
	result, err := run(ctx, os.Args[1:])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(result)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "drive: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, arguments []string) (any, error) {
	switch {
	case len(arguments) >= 3 && arguments[0] == "prepare-remove":
		rounds, err := strconv.Atoi(arguments[1])
		if err != nil {
			return nil, err
		}
		return measurePrepareRemove(ctx, rounds, arguments[2:])
	case len(arguments) == 4 && arguments[0] == "list":
		count, err := strconv.Atoi(arguments[2])
		if err != nil {
			return nil, err
		}
		rounds, err := strconv.Atoi(arguments[3])
		if err != nil {
			return nil, err
		}
		return measureList(ctx, arguments[1], count, rounds)
	}
	return nil, fmt.Errorf("unknown arguments %q: see the first lines of its source", arguments)
}

// connect connects as containerd does with its proxy plugins.
func connect(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
			grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize)))
}

func measurePrepareRemove(ctx context.Context, rounds int, names []string) (map[string][]float64, error) {
	conn, err := connect(defaults.DefaultAddress)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	client, leases := snapshotsapi.NewSnapshotsClient(conn), leasesapi.NewLeasesClient(conn)
	for _, name := range names {
		s := proxy.NewSnapshotter(client, name)
		if _, err := s.Stat(ctx, base); err == nil {
			continue
		}
		if _, err := s.Prepare(ctx, "base", "", kept); err != nil {
			return nil, err
		}
		if err := s.Commit(ctx, base, "base", kept); err != nil {
			return nil, err
		}
	}
	took := map[string][]float64{}
	for round := range rounds + 1 {
		for n := range names {
			name := names[(round+n)%len(names)]
			start := time.Now()
			if err := prepareRemove(ctx, proxy.NewSnapshotter(client, name), leases); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			// The first round does not count.
			if round > 0 {
				took[name] = append(took[name], milliseconds(time.Since(start))/pairs)
			}
		}
	}
	return took, nil
}

// prepareRemove prepares and removes snapshots, and returns when nothing is left of them.
func prepareRemove(ctx context.Context, s snapshots.Snapshotter, leases leasesapi.LeasesClient) error {
	for n := range pairs {
		key := fmt.Sprintf("container %d", n)
		if _, err := s.Prepare(ctx, key, base, kept); err != nil {
			return err
		}
		if err := s.Remove(ctx, key); err != nil {
			return err
		}
	}
	// The end of a lease is how a client can ask for a collection and wait for it.
	lease, err := leases.Create(ctx, &leasesapi.CreateRequest{ID: "drive"})
	if err != nil {
		return err
	}
	_, err = leases.Delete(ctx, &leasesapi.DeleteRequest{ID: lease.Lease.ID, Sync: true})
	return err
}

func measureList(ctx context.Context, socket string, count, rounds int) (map[string][]float64, error) {
	conn, err := connect(socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	s := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "")
	start := time.Now()
	if err := fill(ctx, s, count); err != nil {
		return nil, err
	}
	took := map[string][]float64{"fill": {milliseconds(time.Since(start))}}
	// The client's own garbage is collected between the rounds.
	debug.SetGCPercent(-1)
	for range rounds {
		runtime.GC()
		start, listed := time.Now(), 0
		err := s.Walk(ctx, func(context.Context, snapshots.Info) error {
			listed++
			return nil
		})
		if err != nil {
			return nil, err
		}
		took["list"] = append(took["list"], milliseconds(time.Since(start)))
		took["snapshots"] = append(took["snapshots"], float64(listed))
	}
	return took, nil
}

// fill makes snapshots as containerd does: for each image layer a committed one, and for each container an active one.
func fill(ctx context.Context, s snapshots.Snapshotter, count int) error {
	failures := make([]error, workers)
	var group sync.WaitGroup
	for worker := range workers {
		group.Go(func() {
			parent := ""
			for n := worker; n < count; n += workers {
				key, name := fmt.Sprintf("default/%d/extract-%d", n, n), fmt.Sprintf("default/%d/sha256:%064x", n, n)
				labels := snapshots.WithLabels(map[string]string{
					"containerd.io/snapshot.ref":            fmt.Sprintf("sha256:%064x", n),
					"containerd.io/snapshot/image-layer-of": "docker.io/library/image:latest",
				})
				_, err := s.Prepare(ctx, key, parent, labels)
				if err == nil && n/workers%2 == 0 {
					err = s.Commit(ctx, name, key, labels)
					parent = name
				}
				// As many layers as an image may have at the most.
				if n/workers%100 == 0 {
					parent = ""
				}
				if err != nil {
					failures[worker] = err
					return
				}
			}
		})
	}
	group.Wait()
	failed := slices.IndexFunc(failures, func(err error) bool { return err != nil })
	if failed >= 0 {
		return failures[failed]
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
