// Go's net/http: a goroutine and a channel for each client. An event is encoded once, and each is written and flushed
// by itself; with -coalesce, what waits for a client is written and flushed together. No IDs, history, limits, auth or
// heartbeats; one client that does not read holds up the publisher, and with it all others.
package main

import (
	"flag"
	"io"
	"log"
	"net/http"
	"strings"
	"sync"
)

// As much room for one client as trio_sse gives by default.
const bufferEvents = 256

// What waits is written together, up to about so many bytes: as trio_sse does.
const chunkBytes = 64 * 1024

var (
	address  = flag.String("address", "127.0.0.1:8000", "where to listen")
	coalesce = flag.Bool("coalesce", false, "write together what waits for a client")
)

type client struct {
	events chan []byte
	gone   <-chan struct{}
}

type hub struct {
	lock    sync.RWMutex
	clients map[*client]struct{}
}

func (h *hub) subscribe(w http.ResponseWriter, r *http.Request) {
	flusher := w.(http.Flusher)
	c := &client{make(chan []byte, bufferEvents), r.Context().Done()}
	h.lock.Lock()
	h.clients[c] = struct{}{}
	h.lock.Unlock()
	defer func() {
		h.lock.Lock()
		delete(h.clients, c)
		h.lock.Unlock()
	}()

	header := w.Header()
	header.Set("Content-Type", "text/event-stream")
	header.Set("Cache-Control", "no-store")
	io.WriteString(w, ": open\n\n")
	flusher.Flush()
	for {
		select {
		case <-c.gone:
			return
		case event := <-c.events:
			w.Write(event)
			// Nobody else receives from this channel, so what is in it stays there for us.
			for written := len(event); *coalesce && len(c.events) > 0 && written < chunkBytes; {
				event = <-c.events
				w.Write(event)
				written += len(event)
			}
			flusher.Flush() // an error is told by the context
		}
	}
}

func (h *hub) publish(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	event := encode(string(body))
	h.lock.RLock()
	clients := make([]*client, 0, len(h.clients))
	for c := range h.clients {
		clients = append(clients, c)
	}
	h.lock.RUnlock()
	for _, c := range clients {
		select {
		case c.events <- event:
		default:
			select {
			case c.events <- event:
			case <-c.gone:
			}
		}
	}
	w.WriteHeader(http.StatusCreated)
	io.WriteString(w, "published\n")
}

var lines = strings.NewReplacer("\r\n", "\ndata: ", "\r", "\ndata: ", "\n", "\ndata: ")

// encode makes one event of any text; each of its lines becomes a data line (WHATWG HTML § 9.2.5).
func encode(text string) []byte {
	return []byte("data: " + lines.Replace(text) + "\n\n")
}

func main() {
	flag.Parse()
	h := &hub{clients: map[*client]struct{}{}}
	http.HandleFunc("/events", h.subscribe)
	http.HandleFunc("/publish", h.publish)
	log.Fatal(http.ListenAndServe(*address, nil))
}
