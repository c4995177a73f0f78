//! One connection, made anew after it was lost or did not answer.

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use redis::{ErrorKind, RedisError, RedisResult};

use crate::error::Failure;

type Connecting<C> = Shared<BoxFuture<'static, RedisResult<C>>>;

/// A connection that is made when it is needed. After a lost one, and after one that did not answer in time (who knows whether its other end
/// is still there), the next command gets a new one. The client's own manager keeps the silent ones for ever.
pub(crate) struct Line<C> {
    connect: Box<dyn Fn() -> BoxFuture<'static, RedisResult<C>> + Send + Sync>,
    current: Mutex<Option<Connecting<C>>>,
}

impl<C: Clone + Send + Sync + 'static> Line<C> {
    /// One made by `connect`.
    pub(crate) fn new(connect: impl Fn() -> BoxFuture<'static, RedisResult<C>> + Send + Sync + 'static) -> Self {
        Line { connect: Box::new(connect), current: Mutex::default() }
    }

    /// Makes it now.
    pub(crate) async fn connect(&self) -> Result<(), Failure> {
        self.connection().await.map(drop)
    }

    /// Whoever comes while it is made waits for the same.
    async fn connection(&self) -> Result<(Connecting<C>, C), Failure> {
        let connecting = self.current.lock().get_or_insert_with(|| (self.connect)().shared()).clone();
        match connecting.clone().await {
            Ok(connection) => Ok((connecting, connection)),
            Err(error) => {
                self.forget(&connecting);
                Err(Failure::Unreached(error))
            }
        }
    }

    fn forget(&self, which: &Connecting<C>) {
        let mut current = self.current.lock();
        if current.as_ref().is_some_and(|current| current.ptr_eq(which)) {
            *current = None;
        }
    }

    /// Gives the connection up; the next command gets a new one.
    pub(crate) fn renew(&self) {
        *self.current.lock() = None;
    }

    /// Sends something; once more if the connection turns out to be lost, and it `may_repeat`.
    pub(crate) async fn send<T, F: Future<Output = RedisResult<T>>>(
        &self,
        mut may_repeat: bool,
        send: impl Fn(C) -> F,
    ) -> Result<T, Failure> {
        loop {
            let (which, connection) = self.connection().await?;
            let error = match send(connection).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if is_answer(&error) {
                return Err(Failure::Answered(error));
            }
            self.forget(&which);
            if !may_repeat || error.is_timeout() {
                return Err(Failure::Unanswered(error));
            }
            may_repeat = false;
        }
    }
}

/// Whether the server has said so, rather than that it cannot be understood: a frame that was torn comes as an error of this kind or that.
pub(crate) fn is_answer(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
}
