//! How a group becomes a server: all that can fail is done before a thread has a socket.

use core::time::Duration;
use std::sync::{Arc, Mutex};
use std::thread::{Builder, JoinHandle};
use std::{boxed::Box, vec::Vec};

use super::member::{Entry, Member, MemberState};
use super::pool::Pool;
use super::worker::{MakeWork, Order, Worker, run};
use super::{Control, Serve, Server, SpawnError, deadline_after, handoff};
use crate::error::{Call, Error};
use crate::group::{Group, GroupConfig};
use crate::os;

impl<P: Serve> Group<P> {
    /// Starts the threads. `work` makes what a thread does, on that thread; `None`: there are none,
    /// because another runtime accepts.
    pub(super) fn start(self, work: Option<MakeWork<P>>) -> Result<Server<P>, SpawnError<P>> {
        let options = &self.config.options;
        let (spare_limit, shared) = (options.spare_threads, options.shared);
        let spares = !P::HAS_PAYLOAD && work.is_some();
        let spare_limit = if spares { spare_limit } else { 0 };
        let pins = self.config.clone();
        let pins = Box::new(move |cpu_index| pins.pinned_cpu(cpu_index).ok().flatten());
        let pool = Pool::new(work, pins, spare_limit, shared);
        let blocking: Vec<_> = self.sockets.iter().map(blocks::<P>).collect();
        let bytes = self.routing_bytes();
        let prepared = self.prepare(&pool);
        let (ready, monitor) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                pool.close();
                let deadline = deadline_after(Duration::MAX);
                pool.wait_until(deadline, |state| state.threads == 0);
                pool.join_all(deadline);
                return Err(SpawnError::new(error, self));
            }
        };
        let mut control = Control {
            config: self.config,
            next_id: self.sockets.len(),
            old_process: self.old_process,
            stopped: false,
            blocked: Vec::new(),
            handing_over: false,
            handed_over: false,
        };
        let nonblocking = !pool.blocks(&control.config);
        let options = control.config.options.clone();
        control.config.options = options.nonblocking(nonblocking);
        let address = control.config.address;
        for (id, ((worker, source), socket)) in ready.into_iter().zip(self.sockets).enumerate() {
            let member = Member::new(id, id, bytes[id], socket, source);
            if control.config.inherited && blocking[id] {
                control.blocked.push(Arc::clone(&member));
            }
            pool.employ(member, worker.as_ref(), 0);
        }
        if let Some(old_process) = &mut control.old_process {
            old_process.notify();
        }
        Ok(Server {
            address,
            control: Mutex::new(control),
            pool,
            process: std::process::id(),
            monitor: Mutex::new(monitor),
        })
    }

    /// Does all that can fail: threads that wait for their member, and how they will wait.
    #[allow(clippy::type_complexity)] // named nowhere else
    fn prepare(
        &self,
        pool: &Arc<Pool<P>>,
    ) -> Result<
        (
            Vec<(Option<Arc<Worker<P>>>, P::Source)>,
            Option<JoinHandle<()>>,
        ),
        Error,
    > {
        let mut ready = Vec::new();
        let mut prepare = || {
            for (id, socket) in self.sockets.iter().enumerate() {
                let sibling = ready.first().map(|(_, source)| source);
                let source = P::new_source(&self.config, sibling)?;
                P::descriptor(socket).set_nonblocking(!pool.blocks(&self.config))?;
                let cpu = self.config.pinned_cpu(id)?;
                ready.push((pool.start_worker(id, cpu)?, source));
            }
            match pool.spare_limit {
                0 => Ok(None),
                _ => handoff::start_monitor(pool).map(Some),
            }
        };
        let monitor = prepare();
        if monitor.is_err() {
            let workers = ready.iter().filter_map(|(worker, _)| worker.as_ref());
            workers.for_each(|worker| worker.give(Order::End));
        }
        Ok((ready, monitor?))
    }
}

fn blocks<P: Serve>(socket: &P::Socket) -> bool {
    let fd = P::descriptor(socket).raw();
    // SAFETY: takes two integers.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    flags >= 0 && flags & libc::O_NONBLOCK == 0
}

/// Whether workers poll: where a shutdown would wake no thread, or would also close the socket of
/// other processes.
pub(super) fn polls<P: Serve>(config: &GroupConfig<P>) -> bool {
    config.inherited || !os::SHUTDOWN_WAKES
}

impl<P: Serve> Pool<P> {
    /// Whether the sockets of such a group block: not where a runtime polls them.
    fn blocks(&self, config: &GroupConfig<P>) -> bool {
        self.work.is_some() && !polls(config)
    }

    /// Starts a thread, which waits for its first order.
    pub(crate) fn start_thread(self: &Arc<Self>, name: &str) -> Result<Arc<Worker<P>>, Error> {
        let worker = Worker::new();
        let (pool, its) = (Arc::clone(self), Arc::clone(&worker));
        self.lock().threads += 1;
        let thread = Builder::new().name(name.into());
        match thread.spawn(move || run(&pool, &its)) {
            Ok(handle) => {
                self.lock().handles.push(handle);
                Ok(worker)
            }
            Err(error) => {
                self.lock().threads -= 1;
                let errno = error.raw_os_error().unwrap_or(libc::EAGAIN);
                Err(Error::new(Call::PthreadCreate, errno))
            }
        }
    }

    /// Starts a thread for the member with this number: on its CPU, if workers are pinned. `None`
    /// where another runtime accepts.
    pub(crate) fn start_worker(
        self: &Arc<Self>,
        id: usize,
        cpu: Option<u32>,
    ) -> Result<Option<Arc<Worker<P>>>, Error> {
        if self.work.is_none() {
            return Ok(None);
        }
        let name = std::format!("{}-{id}", P::THREAD_NAME);
        let Some(cpu) = cpu else {
            return self.start_thread(&name).map(Some);
        };
        let mut started = None;
        let pinned = os::start_on_cpu(cpu, || started = Some(self.start_thread(&name)));
        match (pinned, started) {
            (Ok(()), Some(started)) => started.map(Some),
            (Err(error), started) => {
                // The caller's own CPUs could not be restored: the thread is there already.
                if let Some(Ok(worker)) = started {
                    worker.give(Order::End);
                }
                Err(error)
            }
            (Ok(()), None) => Err(Error::new(Call::PthreadCreate, libc::EAGAIN)),
        }
    }

    /// [Enters](super::list::PoolState::enter) a member in the list, and gives it to a worker.
    pub(super) fn employ(
        &self,
        member: Arc<Member<P>>,
        worker: Option<&Arc<Worker<P>>>,
        departures: usize,
    ) {
        let mut entry = Entry::new(member, MemberState::Serving);
        let order = entry.employ(worker);
        self.lock().enter(entry, departures);
        if let (Some(worker), Some(order)) = (worker, order) {
            worker.give(order);
        }
    }
}
