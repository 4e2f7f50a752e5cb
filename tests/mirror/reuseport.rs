//! Three threads, three listening sockets, one port: the kernel chooses which thread accepts.
//! Usage: reuseport [port]. reuseport.c, beside this file, is the same program line by line: each
//! `// C:` quotes the line that the Rust below it stands for.

use core::ffi::c_int;
use core::net::{Ipv4Addr, SocketAddr};
use core::ptr::null_mut;
use std::io::{self, Write};
use std::{env, process, thread};

use reuseport::sys::{self, AF_INET, SO_REUSEPORT, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET};
use reuseport::{Error, SockAddr};

// C: enum { THREADS = 3 };
const THREADS: c_int = 3;

// C: static int check(const char *call, int result) {
fn check<T>(result: Result<T, Error>) -> T {
    // C: if (result == -1) {
    result.unwrap_or_else(|error| {
        // C: perror(call);
        eprintln!("{error}");
        // C: exit(1);
        process::exit(1)
    })
}

// C: static void *acceptor(void *number) {
fn acceptor(n: c_int, port: u16) {
    // C: int server = check("socket", socket(AF_INET, SOCK_STREAM, 0));
    // SAFETY: the descriptor stays open for as long as the program runs.
    let server = check(unsafe { sys::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0) });
    // C: int on = 1;
    let on: c_int = 1;
    let (value, len) = ((&raw const on).cast(), 4);
    // C: check("setsockopt", setsockopt(server, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on));
    // SAFETY: `on` is readable for `len` bytes, and the option takes an int.
    check(unsafe { sys::setsockopt(server, SOL_SOCKET, SO_REUSEPORT, value, len) });

    // C: struct sockaddr_in addr = {0};
    // C: addr.sin_family = AF_INET;
    // C: addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    // C: addr.sin_port = htons(port);
    let addr = SockAddr::from(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));

    // C: check("bind", bind(server, (struct sockaddr *)&addr, sizeof addr));
    // SAFETY: `addr` is readable for its own length.
    check(unsafe { sys::bind(server, addr.as_ptr(), addr.len()) });
    // C: check("listen", listen(server, 1));
    // SAFETY: `server` is this thread's.
    check(unsafe { sys::listen(server, 1) });
    // C: for (;;) {
    loop {
        // C: int client = check("accept", accept(server, NULL, NULL));
        // SAFETY: null asks for no address; `client` is closed once, at the end of the loop.
        let client = check(unsafe { sys::accept(server, null_mut(), null_mut(), SOCK_CLOEXEC) });
        // C: printf("acceptor %d\n", n);
        println!("acceptor {n}");
        // C: fflush(stdout);
        io::stdout().flush().expect("stdout");
        // C: check("close", close(client));
        // SAFETY: `client` is used no more.
        check(unsafe { sys::close(client) });
    }
}

// C: int main(int argc, char **argv) {
fn main() {
    // C: static unsigned short port = 3000;
    // C: if (argc > 1)
    // C: port = (unsigned short)atoi(argv[1]);
    let port = env::args()
        .nth(1)
        .map_or(3000, |port| port.parse().expect("a port"));

    // C: pthread_t threads[THREADS];
    let mut threads = Vec::new();
    // C: for (int i = 0; i < THREADS; i++) {
    for n in 0..THREADS {
        // C: if (pthread_create(&threads[i], NULL, acceptor, &numbers[i]) != 0)
        threads.push(thread::spawn(move || acceptor(n, port)));
    }
    // C: for (int i = 0; i < THREADS; i++)
    for thread in threads {
        // C: pthread_join(threads[i], NULL);
        thread.join().expect("an acceptor");
    }
}
