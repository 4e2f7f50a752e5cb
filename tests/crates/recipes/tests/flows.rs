//! Flows with a state that stay with their process over restarts, and new ones that do not.

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::{sync::Arc, thread, time::Duration};

use support::{Newest, Server, line, wait_until};

/// A client, and what it has been answered: how many datagrams it has sent, and by which process.
struct Flow {
    socket: UdpSocket,
    sent: usize,
    process: Option<String>,
}

impl Flow {
    fn new(to: SocketAddr) -> Flow {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(to).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        Flow {
            socket,
            sent: 0,
            process: None,
        }
    }

    #[track_caller]
    fn ask(&mut self) {
        assert!(self.is_answered(), "no answer");
    }

    #[track_caller]
    fn is_answered(&mut self) -> bool {
        self.socket.send(b"hello").unwrap();
        let mut answer = [0; 50];
        let Ok(len) = self.socket.recv(&mut answer) else {
            return false;
        };
        let answer = String::from_utf8_lossy(&answer[..len]).into_owned();
        let (count, process) = answer.split_once(" of ").expect("a count");
        self.sent += 1;
        assert_eq!(count.parse(), Ok(self.sent), "its state is lost");
        let first = self.process.get_or_insert(process.to_owned());
        assert_eq!(first, process);
        true
    }

    fn end(&self) {
        self.socket.send(b"bye").unwrap();
    }
}

/// Flows that begin, go on and end while the server is restarted. The first datagram of a flow may
/// be lost while a member leaves: such a client begins again.
fn begin_and_end(to: SocketAddr, ends: &AtomicBool) -> usize {
    let mut flows = 0;
    while !ends.load(Relaxed) {
        let mut flow = Flow::new(to);
        if flow.is_answered() {
            (0..5).for_each(|_| flow.ask());
            flows += 1;
        }
        flow.end();
    }
    flows
}

#[test]
fn flows_stay_with_their_process_over_restarts_and_new_ones_do_not() {
    let mut server = Server::start("flows", 3);
    let mut newest = Newest(server.child.id().try_into().unwrap());
    let mut generations: Vec<Vec<Flow>> = Vec::new();
    let mut older = Vec::new();
    let (to, ends) = (server.address, Arc::<AtomicBool>::default());
    let ended = Arc::clone(&ends);
    let others = thread::spawn(move || begin_and_end(to, &ended));
    for _ in 0..5 {
        let mut flows: Vec<_> = (0..50).map(|_| Flow::new(server.address)).collect();
        flows.iter_mut().for_each(Flow::ask);
        generations.push(flows);
        for flow in generations.iter_mut().flatten() {
            flow.ask();
        }
        let mut processes = generations.iter().map(|flows| flows[0].process.clone());
        let pid = newest.0.to_string();
        assert_eq!(processes.next_back().flatten(), Some(pid), "new flows");

        newest.signal(libc::SIGHUP);
        let said = [line(&mut server.stdout), line(&mut server.stdout)];
        let new = said
            .iter()
            .find_map(|line| line.strip_prefix("handed over to pid "));
        let new = Newest(new.expect("a pid").parse().unwrap());
        older.push(std::mem::replace(&mut newest, new));
    }
    ends.store(true, Relaxed);
    let others = others.join().expect("each is answered");
    assert!(others > 0);
    assert!(older.iter().all(|process| !process.has_ended()));
    for flow in generations.iter_mut().flatten() {
        flow.ask();
        flow.end();
    }
    wait_until("each process ends with its flows", || {
        older.iter().all(Newest::has_ended)
    });
    older.into_iter().for_each(std::mem::forget);
    _ = server.child.wait();
}
