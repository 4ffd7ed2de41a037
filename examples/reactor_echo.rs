//! A line echo server on one thread, built on `seqpool::reactor` and the standard library alone. No pool.
//!
//! ```text
//! cargo run --example reactor_echo                    # serves its own clients, checks them, reports, stops
//! cargo run --example reactor_echo -- --listen PATH   # serves until it is killed; try: socat - UNIX:PATH
//! ```
//!
//! It shows what a reactor's owner has to do: repeat a read until would-block or the budget is spent, say which it
//! was, watch for room only while there is something to write, stop reading from a peer that does not read, time out
//! silent peers, deregister before closing, and try `accept` again by timer when descriptors run out.

use seqpool::reactor::{Interest, Reactor, Readiness, TimerId, Token};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const MS: u64 = 1_000_000;
/// A peer that sends nothing for so long is dropped.
const IDLE_NS: u64 = 300 * MS;
/// How soon an `accept` that failed is tried again.
const ACCEPT_RETRY_NS: u64 = 100 * MS;
/// A peer that leaves so many bytes unread is not read from.
const UNSENT_SIZE_MAX: usize = 64 * 1024;
/// A line may be this long.
const LINE_SIZE_MAX: usize = 16 * 1024;
/// Timer data that means the listener. Connections use their token's index.
const LISTENER: u64 = u64::MAX;

struct Connection {
    stream: UnixStream,
    token: Token,
    idle: TimerId,
    heard_ns: u64,
    /// Read, but no whole line yet.
    partial: Vec<u8>,
    /// To be written; `sent` bytes of it are.
    unsent: Vec<u8>,
    sent: usize,
    /// The peer has finished sending.
    ended: bool,
    interest: Interest,
}

#[derive(Default, Debug)]
struct Report {
    connections: u64,
    lines: u64,
    idle: u64,
    too_long: u64,
    budget_spent: u64,
    pauses: u64,
}

struct Server {
    reactor: Reactor,
    listener: UnixListener,
    listener_token: Token,
    /// By token index.
    connections: HashMap<usize, Connection>,
    report: Report,
    _file: SocketFile,
}

/// Removes the socket file that this server made; made only after `bind`, so never somebody else's.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

enum Next {
    Keep,
    Close,
}

impl Server {
    fn new(path: &Path) -> Result<Self> {
        let listener = UnixListener::bind(path)?;
        let file = SocketFile(path.to_path_buf());
        listener.set_nonblocking(true)?;
        let mut reactor = Reactor::new()?;
        let listener_token = reactor.register(listener.as_fd(), Interest::READ)?;
        Ok(Self {
            reactor,
            listener,
            listener_token,
            connections: HashMap::new(),
            report: Report::default(),
            _file: file,
        })
    }

    /// Serves until so many connections have come and gone.
    fn run(mut self, connections_max: u64) -> Result<(Report, seqpool::reactor::ReactorStats)> {
        while self.report.connections < connections_max || !self.connections.is_empty() {
            self.reactor.wait(None)?;
            let now_ns = self.reactor.now_ns();
            while let Some(data) = self.reactor.next_expired(now_ns) {
                self.expired(data, now_ns)?;
            }
            while let Some((token, readiness)) = self.reactor.next_ready() {
                if token == self.listener_token {
                    self.accept()?;
                } else {
                    self.serve(token, readiness, now_ns)?;
                }
            }
        }
        Ok((self.report, self.reactor.stats()))
    }

    fn accept(&mut self) -> Result<()> {
        for _ in 0..self.reactor.budget() {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.reactor.exhausted(self.listener_token, Readiness::READ);
                    return Ok(());
                }
                Err(_) => {
                    // Most likely no descriptor is left. No edge will tell when one is free again, and to go on
                    // trying would burn the core: off the ready list, and again in a while.
                    self.reactor.exhausted(self.listener_token, Readiness::READ);
                    self.reactor.set_timer(self.reactor.now_ns() + ACCEPT_RETRY_NS, LISTENER);
                    return Ok(());
                }
            };
            stream.set_nonblocking(true)?;
            let token = self.reactor.register(stream.as_fd(), Interest::READ)?;
            let heard_ns = self.reactor.now_ns();
            let idle = self.reactor.set_timer(heard_ns + IDLE_NS, token.index() as u64);
            self.report.connections += 1;
            self.connections.insert(
                token.index(),
                Connection {
                    stream,
                    token,
                    idle,
                    heard_ns,
                    partial: Vec::new(),
                    unsent: Vec::new(),
                    sent: 0,
                    ended: false,
                    interest: Interest::READ,
                },
            );
        }
        Ok(()) // The budget is spent: the listener is still on the ready list and comes again next turn.
    }

    fn expired(&mut self, data: u64, now_ns: u64) -> Result<()> {
        if data == LISTENER {
            self.reactor.make_ready(self.listener_token, Readiness::READ);
            return Ok(());
        }
        let Some(connection) = self.connections.get_mut(&(data as usize)) else { return Ok(()) };
        let deadline_ns = connection.heard_ns + IDLE_NS;
        if deadline_ns > now_ns {
            // Heard from meanwhile. One timer moved at its end is cheaper than one moved at every byte.
            connection.idle = self.reactor.set_timer(deadline_ns, data);
            return Ok(());
        }
        self.report.idle += 1;
        let token = connection.token;
        self.close(token)
    }

    fn serve(&mut self, token: Token, readiness: Readiness, now_ns: u64) -> Result<()> {
        let Some(connection) = self.connections.get_mut(&token.index()) else { return Ok(()) };
        connection.heard_ns = now_ns;
        let mut next = Next::Keep;
        if readiness.is_writable() {
            next = connection.write(&mut self.reactor);
        }
        if readiness.is_readable() && matches!(next, Next::Keep) {
            next = connection.read(&mut self.reactor, &mut self.report);
        }
        if matches!(next, Next::Keep) {
            connection.update_interest(&mut self.reactor, &mut self.report)?;
        }
        match next {
            Next::Keep => Ok(()),
            Next::Close => self.close(token),
        }
    }

    fn close(&mut self, token: Token) -> Result<()> {
        if let Some(connection) = self.connections.remove(&token.index()) {
            self.reactor.cancel_timer(connection.idle);
            self.reactor.deregister(token, connection.stream.as_fd())?; // before the drop closes it
        }
        Ok(())
    }
}

impl Connection {
    fn unsent_size(&self) -> usize {
        self.unsent.len() - self.sent
    }

    fn read(&mut self, reactor: &mut Reactor, report: &mut Report) -> Next {
        let mut buffer = [0; 4096];
        for _ in 0..reactor.budget() {
            if self.unsent_size() > UNSENT_SIZE_MAX {
                return Next::Keep; // `update_interest` pauses the reading.
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.ended = true;
                    reactor.exhausted(self.token, Readiness::READ);
                    return self.write(reactor);
                }
                Ok(size) => {
                    self.partial.extend_from_slice(&buffer[..size]);
                    if let Some(end) = self.partial.iter().rposition(|&byte| byte == b'\n') {
                        report.lines += self.partial[..=end].iter().filter(|&&byte| byte == b'\n').count() as u64;
                        self.unsent.extend(self.partial.drain(..=end));
                    }
                    if self.partial.len() > LINE_SIZE_MAX {
                        report.too_long += 1;
                        return Next::Close;
                    }
                    if let Next::Close = self.write(reactor) {
                        return Next::Close;
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    reactor.exhausted(self.token, Readiness::READ);
                    return Next::Keep;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Next::Close,
            }
        }
        report.budget_spent += 1; // Still on the ready list: goes on next turn, after everybody else.
        Next::Keep
    }

    fn write(&mut self, reactor: &mut Reactor) -> Next {
        while self.sent < self.unsent.len() {
            match self.stream.write(&self.unsent[self.sent..]) {
                Ok(size) => self.sent += size,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Next::Close,
            }
        }
        // Would-block, or nothing to write: either way nothing more to do until the next edge.
        reactor.exhausted(self.token, Readiness::WRITE);
        if self.sent == self.unsent.len() {
            self.unsent.clear();
            self.sent = 0;
            if self.ended {
                return Next::Close;
            }
        } else if self.sent > UNSENT_SIZE_MAX {
            self.unsent.drain(..self.sent);
            self.sent = 0;
        }
        Next::Keep
    }

    /// Reads only from a peer that reads, and watches for room only while something waits for it.
    fn update_interest(&mut self, reactor: &mut Reactor, report: &mut Report) -> Result<()> {
        let mut interest = Interest::NONE;
        if !self.ended && self.unsent_size() <= UNSENT_SIZE_MAX {
            interest = interest.and(Interest::READ);
        }
        if self.unsent_size() > 0 {
            interest = interest.and(Interest::WRITE);
        }
        if interest != self.interest {
            if !self.ended && !interest.contains(Interest::READ) {
                report.pauses += 1;
            }
            // Re-arms too: what came while reading was paused is reported again.
            reactor.modify(self.token, self.stream.as_fd(), interest)?;
            self.interest = interest;
        }
        Ok(())
    }
}

// ---- the clients that check it ----

const TALKERS: usize = 8;
const TALKER_LINES: usize = 500;
const FLOOD_LINES: usize = 40_000;

/// What a client does; it answers how many lines came back.
type Client = Box<dyn FnOnce(&Path) -> Result<usize> + Send>;

/// Sends a line, waits for it, sends the next.
fn talk(path: &Path, who: usize) -> Result<usize> {
    let mut stream = UnixStream::connect(path)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut back = String::new();
    for i in 0..TALKER_LINES {
        let line = format!("talker {who} line {i}\n");
        stream.write_all(line.as_bytes())?;
        back.clear();
        reader.read_line(&mut back)?;
        if back != line {
            return Err(format!("talker {who} sent {line:?} and got {back:?}").into());
        }
    }
    Ok(TALKER_LINES)
}

/// Sends everything before it reads anything, from another thread: neither side may wait for the other for ever.
fn flood(path: &Path) -> Result<usize> {
    let stream = UnixStream::connect(path)?;
    let mut sender = stream.try_clone()?;
    let writing = thread::spawn(move || -> Result<()> {
        for i in 0..FLOOD_LINES {
            sender.write_all(format!("{i} {}\n", "flood ".repeat(10)).as_bytes())?;
        }
        sender.shutdown(std::net::Shutdown::Write)?;
        Ok(())
    });
    thread::sleep(std::time::Duration::from_millis(50));
    let mut lines = 0;
    for line in BufReader::new(stream).lines() {
        if line?.split(' ').next() != Some(&lines.to_string()) {
            return Err(format!("flood line {lines} is out of order").into());
        }
        lines += 1;
    }
    writing.join().map_err(|_| "the flooding thread panicked")??;
    if lines == FLOOD_LINES { Ok(lines) } else { Err(format!("{lines} of {FLOOD_LINES} lines came back").into()) }
}

/// Says nothing, and expects to be dropped.
fn stay_silent(path: &Path) -> Result<usize> {
    match UnixStream::connect(path)?.read(&mut [0; 16])? {
        0 => Ok(0),
        _ => Err("an echo of nothing".into()),
    }
}

/// Sends a line without an end, and expects to be dropped.
fn ramble(path: &Path) -> Result<usize> {
    let mut stream = UnixStream::connect(path)?;
    // The server closes in the middle of it: a broken pipe here, or a reset below, is the expected end.
    let _ = stream.write_all(&[b'x'; 4 * LINE_SIZE_MAX]);
    match stream.read(&mut [0; 16]) {
        Ok(0) => Ok(0),
        Err(e) if e.kind() == ErrorKind::ConnectionReset => Ok(0),
        other => Err(format!("expected to be dropped, got {other:?}").into()),
    }
}

fn self_check(path: &Path) -> Result<()> {
    let server = Server::new(path)?;
    let mut clients: Vec<thread::JoinHandle<Result<usize>>> = Vec::new();
    let mut start = |client: Client| {
        let path = path.to_path_buf();
        clients.push(thread::spawn(move || client(&path)));
    };
    (0..TALKERS).for_each(|who| start(Box::new(move |path| talk(path, who))));
    start(Box::new(flood));
    start(Box::new(stay_silent));
    start(Box::new(ramble));

    let (report, stats) = server.run(clients.len() as u64)?;
    let mut lines = 0;
    for client in clients {
        lines += client.join().map_err(|_| "a client panicked")??;
    }
    println!("{} connections, {} lines echoed", report.connections, report.lines);
    println!("{} dropped for silence, {} for a line without end", report.idle, report.too_long);
    println!(
        "{} times a budget was spent, {} times a peer that did not read was paused",
        report.budget_spent, report.pauses
    );
    println!(
        "{} waits, {} of them sleeps; {} events, {} stale",
        stats.waits, stats.sleeps, stats.events, stats.stale_events
    );
    if report.lines != lines as u64 || report.idle != 1 || report.too_long != 1 {
        return Err(format!("the clients count {lines} lines: {report:?}").into());
    }
    println!("all {lines} lines came back as they were sent");
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let outcome = match &arguments[..] {
        [] => self_check(&std::env::temp_dir().join(format!("reactor_echo.{}", std::process::id()))),
        [option, path] if option == "--listen" => {
            Server::new(path.as_ref()).and_then(|server| server.run(u64::MAX)).map(|_| ())
        }
        _ => Err("usage: reactor_echo [--listen PATH]".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("reactor_echo: {error}");
            ExitCode::FAILURE
        }
    }
}
