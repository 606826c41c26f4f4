// Package lab is what a plan's program in Go says to the lab: barriers over the sync service of Testground, events and
// metrics as the files of its SDKs. It has what plans that ship need of it, and no more.
package lab

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/websocket"
)

// Lab is where the program runs, and its connection to those who run it. One call is under way at a time.
type Lab struct {
	conn   *websocket.Conn
	prefix string
	calls  int

	// Seed of the run, the same for all instances.
	Seed uint64
	// Group of this instance, its index in it, and its index over all groups in the order of their names.
	Group   string
	Index   int
	Ordinal int
	// Addr is its address in the lab network; behind a NAT it has another one.
	Addr string
	// Hosts are the names of all instances by ordinal, which resolve in the lab network, and Groups their groups.
	Hosts  []string
	Groups []string
}

// Enter reads the variables that the lab sets, and connects to it.
func Enter() (*Lab, error) {
	host, port := os.Getenv("SYNC_SERVICE_HOST"), os.Getenv("SYNC_SERVICE_PORT")
	conn, _, err := websocket.DefaultDialer.Dial("ws://"+net.JoinHostPort(host, port)+"/", nil)
	if err != nil {
		return nil, fmt.Errorf("the lab does not answer: %w", err)
	}
	env := os.Getenv
	prefix := fmt.Sprintf("run:%s:plan:%s:case:%s", env("TEST_RUN"), env("TEST_PLAN"), env("TEST_CASE"))
	l := &Lab{conn: conn, prefix: prefix, Group: env("IPTL_GROUP"), Addr: env("IPTL_ADDR")}
	if l.Seed, err = strconv.ParseUint(env("IPTL_SEED"), 10, 64); err != nil {
		return nil, err
	}
	for name, place := range map[string]*int{"IPTL_INDEX": &l.Index, "IPTL_ORDINAL": &l.Ordinal} {
		if *place, err = strconv.Atoi(env(name)); err != nil {
			return nil, err
		}
	}
	for group := range strings.SplitSeq(env("IPTL_GROUPS"), ",") {
		name, size, _ := strings.Cut(group, "=")
		count, err := strconv.Atoi(size)
		if err != nil {
			return nil, err
		}
		for index := range count {
			l.Hosts = append(l.Hosts, fmt.Sprintf("%s-%d", name, index))
			l.Groups = append(l.Groups, name)
		}
	}
	return l, nil
}

// Param returns a whole number that the run chose; durations are milliseconds and sizes bytes.
func Param(name string) (int, error) {
	variable := "IPTL_PARAM_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
	return strconv.Atoi(os.Getenv(variable))
}

// Meet signals a state and waits until so many have.
func (l *Lab) Meet(state string, count int) error {
	key := fmt.Sprintf("%s:states:%s", l.prefix, state)
	if err := l.call("signal_entry", map[string]any{"state": key}); err != nil {
		return err
	}
	return l.call("barrier", map[string]any{"state": key, "target": count})
}

func (l *Lab) call(what string, arguments map[string]any) error {
	id := strconv.Itoa(l.calls)
	l.calls++
	if err := l.conn.WriteJSON(map[string]any{"id": id, "is_cancel": false, what: arguments}); err != nil {
		return err
	}
	for {
		var answer struct {
			ID    string `json:"id"`
			Error string `json:"error"`
		}
		if err := l.conn.ReadJSON(&answer); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if answer.ID == id {
			if answer.Error != "" {
				return fmt.Errorf("%s: %s", what, answer.Error)
			}
			return nil
		}
	}
}

// Metric records a value.
func Metric(name string, value float64, unit string) error {
	return record("results.out", map[string]any{
		"ts": time.Now().UnixNano(), "type": "point", "name": name, "unit": unit,
		"measures": map[string]any{"value": value},
	})
}

// Event records that something happened.
func Event(name string, data map[string]any) error {
	return record("run.out", map[string]any{
		"ts": time.Now().UnixNano(), "msg": "", "group_id": os.Getenv("TEST_GROUP_ID"), "run_id": os.Getenv("TEST_RUN"),
		"event": map[string]any{"iptl_event": map[string]any{"name": name, "data": data}},
	})
}

func record(file string, line map[string]any) error {
	bytes, err := json.Marshal(line)
	if err != nil {
		return err
	}
	path := filepath.Join(os.Getenv("TEST_OUTPUTS_PATH"), file)
	out, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	_, err = out.Write(append(bytes, '\n'))
	return err
}
