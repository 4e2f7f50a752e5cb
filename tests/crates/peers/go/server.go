// Go's own: a listener for each acceptor, all on one port; net/http answers the requests.
// ADDRESS ACCEPTORS close|http
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"strconv"
	"syscall"
)

const soReusePort = 15 // SO_REUSEPORT on most of Linux; package syscall does not have it

func reusePort(_, _ string, conn syscall.RawConn) error {
	var failed error
	err := conn.Control(func(fd uintptr) {
		failed = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, soReusePort, 1)
	})
	if err != nil {
		return err
	}
	return failed
}

func closeAll(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		conn.Close()
	}
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 4 {
		log.Fatal("usage: ADDRESS ACCEPTORS close|http")
	}
	address := os.Args[1]
	acceptors, err := strconv.Atoi(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	body := []byte("ok\n")
	server := http.Server{Handler: http.HandlerFunc(
		func(reply http.ResponseWriter, _ *http.Request) { reply.Write(body) })}
	ended := make(chan error)
	for i := 0; i < acceptors; i++ {
		config := net.ListenConfig{Control: reusePort}
		listener, err := config.Listen(context.Background(), "tcp4", address)
		if err != nil {
			log.Fatal(err)
		}
		address = listener.Addr().String() // the others bind what port 0 has become
		if os.Args[3] == "http" {
			go func() { ended <- server.Serve(listener) }()
		} else {
			go func() { ended <- closeAll(listener) }()
		}
	}
	fmt.Fprintln(os.Stderr, "listening on", address)
	log.Fatal(<-ended)
}
