package conformance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/defaults"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// patience is how long a daemon may take to start or to end.
const patience = 30 * time.Second

// settings are those that containerd's overlayfs has, too. The zero value is a node that sets none.
type settings struct {
	mountOptions  []string
	upperdirLabel bool
	remapIDs      bool
}

// toml is the table of the node's settings.
func (s settings) toml() string {
	var text strings.Builder
	text.WriteString("[snapshotter]\n")
	if s.mountOptions != nil {
		fmt.Fprintf(&text, "mount-options = [\"%s\"]\n", strings.Join(s.mountOptions, `", "`))
	}
	fmt.Fprintf(&text, "upperdir-label = %t\nremap-ids = %t\n", s.upperdirLabel, s.remapIDs)
	return text.String()
}

// daemon is a nixenv-snapshotter whose whole node lies below one directory.
type daemon struct {
	prefix  string
	command *exec.Cmd
	ended   chan struct{} // closed when the process has ended
	conn    *grpc.ClientConn
}

// startDaemon returns when the daemon takes requests.
func startDaemon(prefix string, s settings) (*daemon, error) {
	program := os.Getenv("NIXENV_SNAPSHOTTER")
	if program == "" {
		return nil, errors.New("NIXENV_SNAPSHOTTER is unset: it names the daemon's program (see tests/run)")
	}
	configuration := filepath.Join(prefix, "etc/nixenv/config.toml")
	if err := os.MkdirAll(filepath.Dir(configuration), 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(configuration, []byte(s.toml()), 0o644); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(prefix, "daemon.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d := &daemon{prefix: prefix, ended: make(chan struct{})}
	d.command = exec.Command(program, "--prefix", prefix)
	d.command.Stdout, d.command.Stderr = log, log
	d.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.command.Start(); err != nil {
		return nil, err
	}
	go func() {
		d.command.Wait()
		close(d.ended)
	}()
	d.conn, err = grpc.NewClient("unix://"+d.socket(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// As containerd does with its proxy plugins.
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
			grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize)))
	if err == nil {
		err = d.answers()
	}
	if err != nil {
		return nil, errors.Join(err, d.kill())
	}
	return d, nil
}

// answers waits until the daemon answers.
func (d *daemon) answers() error {
	deadline := time.Now().Add(patience)
	for {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		_, err := d.snapshotter().Stat(ctx, "whether the daemon answers")
		cancel()
		if err == nil || !strings.Contains(err.Error(), "connect: ") {
			return nil
		}
		select {
		case <-d.ended:
			return fmt.Errorf("the daemon did not start: %s\n%s", d.command.ProcessState, d.log())
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the daemon does not answer: %w\n%s", err, d.log())
		}
		d.conn.ResetConnectBackoff()
	}
}

// snapshotter is the daemon as containerd sees it.
func (d *daemon) snapshotter() snapshots.Snapshotter {
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(d.conn), "nixenv")
}

func (d *daemon) socket() string { return filepath.Join(d.prefix, "run/nixenv/snapshotter.sock") }

// root is the directory of the snapshotter.
func (d *daemon) root() string { return snapshotterRoot(d.prefix) }

func snapshotterRoot(prefix string) string {
	return filepath.Join(prefix, "var/lib/nixenv/snapshotter")
}

// log is what the daemon, and those before it below the same directory, have said.
func (d *daemon) log() string {
	text, _ := os.ReadFile(filepath.Join(d.prefix, "daemon.log"))
	return string(text)
}

// stop ends the daemon as a service manager does.
func (d *daemon) stop() error {
	select {
	case <-d.ended:
		return fmt.Errorf("the daemon ended by itself: %s\n%s", d.command.ProcessState, d.log())
	default:
	}
	if err := d.command.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-d.ended:
	case <-time.After(patience):
		return errors.Join(errors.New("the daemon does not end"), d.kill())
	}
	if !d.command.ProcessState.Success() {
		return fmt.Errorf("the daemon ended badly: %s\n%s", d.command.ProcessState, d.log())
	}
	return d.conn.Close()
}

// kill ends the daemon as a loss of power does, but for what the kernel has not written yet.
func (d *daemon) kill() error {
	err := d.command.Process.Kill()
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	<-d.ended
	if d.conn != nil {
		err = errors.Join(err, d.conn.Close())
	}
	return err
}
