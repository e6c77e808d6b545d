//! What the daemon answers to those who ask and command over the control socket.
//!
//! The danger: something is begun while the daemon is taken down, or keeps it from ending. So from the moment that it was told
//! to stop, what is under way is given up, and only questions are answered.

use super::{Event, Shared, report};
use crate::change::{Depth, Scope};
use crate::control::{ControlRequest, Handler};
use crossbeam_channel::bounded;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::Duration;

impl Handler for Shared {
    fn handle(
        &self,
        request: ControlRequest,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Value, String> {
        let stopping = || self.stopping.load(Ordering::Acquire);
        let cancelled = &|| stopping() || cancelled();
        let asks = matches!(
            request,
            ControlRequest::Status | ControlRequest::Tasks { .. } | ControlRequest::Stop
        );
        if stopping() && !asks {
            return Err("the daemon is stopping".to_string());
        }
        match request {
            ControlRequest::Status => report::status(self).map(|s| s.to_json()),
            ControlRequest::Tasks { mirror, limit } => {
                report::tasks(self, mirror.as_deref(), limit)
            }
            ControlRequest::Wait {
                mirror,
                timeout_seconds,
            } => {
                let timeout = timeout_seconds.map(Duration::from_secs);
                report::wait(self, mirror.as_deref(), timeout, cancelled)?;
                Ok(json!(null))
            }
            ControlRequest::Pause { mirror } => {
                self.workers
                    .with(&mirror, |w| w.pause().map_err(|e| e.to_string()))??;
                Ok(json!(null))
            }
            ControlRequest::Resume { mirror } => {
                self.workers
                    .with(&mirror, |w| w.resume().map_err(|e| e.to_string()))??;
                Ok(json!(null))
            }
            ControlRequest::Sync {
                mirror,
                delete,
                checksum,
            } => {
                let scope = Scope {
                    depth: Depth::Tree,
                    delete,
                    bytes: checksum,
                };
                self.workers
                    .with(&mirror, |w| w.sync(scope).map_err(|e| e.to_string()))??;
                Ok(json!(null))
            }
            ControlRequest::Verify { mirror, checksum } => {
                report::verify(self, &mirror, checksum, cancelled)
            }
            ControlRequest::TryAgain { mirror } => {
                self.workers.try_again(mirror.as_deref())?;
                Ok(json!(null))
            }
            ControlRequest::TestMail => {
                let config = self.config().clone();
                let alarm = self.alarm.get().ok_or("the daemon is just starting")?;
                alarm.test(&config).map(Value::from)
            }
            ControlRequest::Forget { mirror } => {
                if self.config().mirror(&mirror).is_some() {
                    return Err(format!("the mirror {mirror} is still configured"));
                }
                let forgotten = self.journal.forget_mirror(&mirror);
                forgotten.map(|()| json!(null)).map_err(|e| e.to_string())
            }
            ControlRequest::Stop if stopping() => Ok(json!(null)),
            ControlRequest::Stop => self.tell(Event::Stop("asked to by `proxyfs stop`")),
            ControlRequest::Reload => {
                let (answer, answered) = bounded(1);
                self.tell(Event::Reload(Some(answer)))?;
                answered
                    .recv()
                    .map_err(|_| "the daemon is stopping".to_string())?
                    .map(Value::from)
            }
        }
    }
}

impl Shared {
    fn tell(&self, event: Event) -> Result<Value, String> {
        self.events
            .send(event)
            .map_err(|_| "the daemon is stopping".to_string())?;
        Ok(json!(null))
    }
}
