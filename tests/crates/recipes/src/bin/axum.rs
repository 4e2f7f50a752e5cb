//! axum, a runtime and a listener for each worker. On SIGUSR1 one worker leaves, on SIGTERM all do:
//! nothing new reaches who leaves, and what has reached it is served.
//!
//! The listeners are the runtimes', so this program does what `Server::retire` would do. The group
//! stays in `main`, which steers; each runtime has a second descriptor for the same socket.

use std::os::fd::AsFd;
use std::thread::{self, JoinHandle, sleep};
use std::{error::Error, io, net, time::Duration};

use axum::{Router, body::Bytes, routing::any};
use reuseport::{Group, Listener, Steering};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// How long a worker goes on accepting when nobody new is steered to it. Handshakes that it has
/// begun are finished by then, over any distance; a packet that is lost is sent again after a
/// second, so who wants to wait for that too says two. It also lets those whom axum has accepted
/// send their request: axum, told to end, drops a client that has sent nothing.
const GRACE: Duration = Duration::from_secs(1);

type Thread = JoinHandle<io::Result<()>>;

struct Worker {
    stop: oneshot::Sender<()>,
    thread: Thread,
}

fn main() -> Result<(), Box<dyn Error>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let mut leave = signal(SignalKind::user_defined1())?;
    let mut end = signal(SignalKind::terminate())?;
    let mut group = Group::bind(recipes::address(), recipes::members())?;
    let started = group.sockets().iter().enumerate().map(Worker::start);
    let mut workers = started.collect::<io::Result<Vec<_>>>()?;
    println!("listening on {}", group.local_addr());
    loop {
        let one = runtime.block_on(async {
            tokio::select! { _ = leave.recv() => true, _ = end.recv() => false }
        });
        if !one || workers.len() == 1 {
            break;
        }
        group.set_steering(Steering::Except(0))?;
        // When it is closed the kernel may have found it for a client already. With this filter
        // that client tries again, without it is reset. The kernel may want a privilege for it.
        _ = group.sockets()[0].attach_syn_filter();
        sleep(GRACE);
        // It ends when its requests are answered: one that takes long holds this up.
        finished(workers.swap_remove(0).stop())?;
        // The last descriptor is ours. Closed, the last member moves into its place in the kernel.
        let mut members = group.into_sockets();
        members.swap_remove(0);
        group = Group::from_listeners(members)?;
        group.set_steering(Steering::Hash)?;
        println!("a worker has left");
    }
    // There is nobody to steer to: new clients are turned away, if the kernel lets us.
    let members = group.sockets().iter();
    members.for_each(|member| _ = member.attach_syn_filter());
    sleep(GRACE);
    // The runtimes' descriptors are the last ones now: a listener is closed when its runtime does.
    drop(group);
    let threads: Vec<_> = workers.into_iter().map(Worker::stop).collect();
    threads.into_iter().try_for_each(finished)?;
    Ok(())
}

fn finished(thread: Thread) -> io::Result<()> {
    thread.join().expect("no panic")
}

impl Worker {
    fn start((member, listener): (usize, &Listener)) -> io::Result<Worker> {
        listener.set_nonblocking(true)?;
        let own = net::TcpListener::from(listener.as_fd().try_clone_to_owned()?);
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let told = async move |body: Bytes| format!("member {member}: {} bytes\n", body.len());
            let app = Router::new().fallback(any(told));
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(own)?;
                let stopped = async { _ = stopped.await };
                axum::serve(listener, app)
                    .with_graceful_shutdown(stopped)
                    .await
            })
        });
        Ok(Worker { stop, thread })
    }

    /// Has it accept no more, and end when the requests that it serves are answered.
    fn stop(self) -> Thread {
        _ = self.stop.send(()); // if it has ended by itself, its thread says why
        self.thread
    }
}
