//! Conversions to and from the standard library's types, and its `Read` and `Write`.

use core::mem::ManuallyDrop;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use crate::error::Error;
use crate::listener::{Connection, Descriptor, Listener};
use crate::socket::udp::UdpSocket;

/// Keeps the errno. An [`io::Error`] does not have the name of the call.
impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        io::Error::from_raw_os_error(error.errno())
    }
}

macro_rules! descriptor {
    ($ours:ident, $theirs:ty) => {
        impl AsRawFd for $ours {
            fn as_raw_fd(&self) -> RawFd {
                self.raw()
            }
        }

        impl AsFd for $ours {
            fn as_fd(&self) -> BorrowedFd<'_> {
                // SAFETY: it stays open as long as `self`, which the result borrows.
                unsafe { BorrowedFd::borrow_raw(self.raw()) }
            }
        }

        impl IntoRawFd for $ours {
            fn into_raw_fd(self) -> RawFd {
                // Not dropped: the number goes to the caller, open.
                ManuallyDrop::new(self).raw()
            }
        }

        impl FromRawFd for $ours {
            unsafe fn from_raw_fd(fd: RawFd) -> $ours {
                // SAFETY: the caller of this trait's function gives the descriptor away.
                $ours(unsafe { Descriptor::own(fd) })
            }
        }

        impl From<$ours> for OwnedFd {
            fn from(ours: $ours) -> OwnedFd {
                // SAFETY: `into_raw_fd` gives up the ownership that the result takes.
                unsafe { OwnedFd::from_raw_fd(ours.into_raw_fd()) }
            }
        }

        impl From<OwnedFd> for $ours {
            fn from(fd: OwnedFd) -> $ours {
                // SAFETY: `into_raw_fd` gives up the ownership that the result takes.
                unsafe { $ours::from_raw_fd(fd.into_raw_fd()) }
            }
        }

        impl From<$ours> for $theirs {
            fn from(ours: $ours) -> $theirs {
                OwnedFd::from(ours).into()
            }
        }

        impl From<$theirs> for $ours {
            fn from(theirs: $theirs) -> $ours {
                OwnedFd::from(theirs).into()
            }
        }
    };
}

descriptor!(Listener, TcpListener);
descriptor!(Connection, TcpStream);
descriptor!(UdpSocket, std::net::UdpSocket);

impl Read for &Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(self.recv(buffer)?)
    }
}

impl Write for &Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(self.send(bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Connection {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(self.recv(buffer)?)
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(self.send(bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
