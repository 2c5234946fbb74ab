// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The management socket: what an operator changes and asks while the daemon runs. A Unix socket for
//! the daemon's own user; a line is a request, a line is its answer, both JSON; answers come in the
//! order of the requests. Here: what requests and answers look like. `server` has the sockets, `execute`
//! does what is asked. `vhost-rdma-ctl` is one program that speaks it.
//!
//! ```json
//! {"command": "hca-add", "hca": "rxe=verbs:rxe0"}
//! {"ok": null}
//! {"command": "hca-remove", "name": "x", "id": 7}
//! {"error": "there is no HCA 'x'; there are 'soft0', 'rxe'", "id": 7}
//! ```

mod execute;
mod server;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use server::Management;

/// Bytes of a request at the most, its end of line included.
pub const MAX_REQUEST: usize = 64 << 10;

/// Connections at a time.
pub const MAX_CLIENTS: usize = 16;

/// A request: `{"command": NAME, …}`. An `id` of any kind may be added; the answer has it then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Plugs an HCA in.
    HcaAdd {
        /// As after `--hca`.
        hca: String,
    },
    /// Unplugs an HCA.
    HcaRemove {
        /// Its name.
        name: String,
    },
    /// All HCAs: an array of [`HcaStatus`].
    HcaList,
    /// Adds a device.
    DeviceAdd {
        /// As after `--socket-path`.
        device: String,
    },
    /// Removes a device.
    DeviceRemove {
        /// Its name, or its socket's path.
        name: String,
    },
    /// All devices: an array of [`DeviceStatus`].
    DeviceList,
    /// What the guests' GIDs of an HCA are on the wire: an array of [`Gid`].
    GidList {
        /// The HCA's name.
        hca: String,
    },
    /// Has a guest's GID stand for another one on the wire, for QPs connected from now on.
    GidMap {
        /// The HCA's name.
        hca: String,
        /// The guest's network.
        #[serde(default)]
        network: u64,
        /// The guest's GID, as an IPv4 or IPv6 address.
        guest: String,
        /// That on the wire.
        wire: String,
    },
    /// Has a guest's GID stand for itself again.
    GidUnmap {
        /// The HCA's name.
        hca: String,
        /// The guest's network.
        #[serde(default)]
        network: u64,
        /// The guest's GID, as an IPv4 or IPv6 address.
        guest: String,
    },
    /// What was counted on the wire, of ports, HCAs and QPs: an object of objects of numbers.
    WireCounters,
    /// What devices counted: an object of objects of numbers, by socket.
    Counters {
        /// The name or socket of the only device to tell of.
        name: Option<String>,
    },
}

/// A GID of a guest, and the one that stands for it on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gid {
    /// The guest's network.
    pub network: u64,
    /// The guest's GID, as an IPv4 or IPv6 address.
    pub guest: String,
    /// That on the wire.
    pub wire: String,
}

/// An HCA as `hca-list` tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HcaStatus {
    /// Its name.
    pub name: String,
    /// All of it, as after `--hca`.
    pub hca: String,
    /// Whether it is there; else it waits for a device that the host does not have now.
    pub present: bool,
    /// The names of the devices that belong to it.
    pub devices: Vec<String>,
}

/// A device as `device-list` tells of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its name.
    pub name: String,
    /// Where its front end connects.
    pub socket: String,
    /// MAC of the guest's network device; null if the front end gives it.
    pub mac: Option<String>,
    /// Its network.
    pub network: u64,
    /// Completion vectors.
    pub vectors: u16,
    /// The name of its HCA.
    pub hca: String,
    /// Whether that HCA is there.
    pub hca_present: bool,
    /// Whether a front end is connected.
    pub connected: bool,
    /// Whether the guest's driver runs it.
    pub running: bool,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Done; what was asked for.
    Ok(Value),
    /// Not done, and why, in words for an operator.
    Error(String),
}

impl Answer {
    /// The answer as a line, with the request's `id`.
    fn line(&self, id: Option<Value>) -> Vec<u8> {
        let mut answer = match self {
            Self::Ok(value) => Map::from_iter([("ok".to_owned(), value.clone())]),
            Self::Error(why) => Map::from_iter([("error".to_owned(), why.clone().into())]),
        };
        answer.extend(id.map(|id| ("id".to_owned(), id)));
        let mut line = Value::Object(answer).to_string().into_bytes();
        line.push(b'\n');
        line
    }
}

/// A request from its line, and its `id`.
fn parse(line: &[u8]) -> (Result<Request, String>, Option<Value>) {
    let mut value: Value = match serde_json::from_slice(line) {
        Ok(value) => value,
        Err(e) => return (Err(format!("not a line of JSON: {e}")), None),
    };
    let id = value.as_object_mut().and_then(|request| request.remove("id"));
    (Request::deserialize(value).map_err(|e| format!("not a request: {e}")), id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_documented_and_others_say_what_is_wrong() {
        let (request, id) = parse(br#"{"command": "hca-add", "hca": "soft", "id": [7]}"#);
        assert_eq!(request, Ok(Request::HcaAdd { hca: "soft".to_owned() }));
        assert_eq!(id, Some(serde_json::json!([7])));
        assert_eq!(parse(br#"{"command":"counters"}"#).0, Ok(Request::Counters { name: None }));
        for (bad, word) in [
            ("", "not a line of JSON"),
            ("hca-list", "not a line of JSON"),
            ("\u{0}", "not a line of JSON"),
            ("[]", "not a request"),
            ("{}", "command"),
            (r#"{"command":"fly"}"#, "unknown variant `fly`, expected one of `hca-add`"),
            (r#"{"command":"hca-remove"}"#, "missing field `name`"),
            (r#"{"command":"hca-remove","name":7}"#, "expected a string"),
            (r#"{"command":"hca-remove","name":"a","force":true}"#, "unknown field `force`"),
        ] {
            let error = parse(bad.as_bytes()).0.unwrap_err();
            assert!(error.contains(word), "{bad}: {error}");
        }
        // Deeper than a stack likes.
        assert!(parse(&[b'['; MAX_REQUEST]).0.is_err());
    }

    #[test]
    fn an_answer_is_one_line_and_has_the_id() {
        let line = Answer::Error("a\nb".to_owned()).line(Some(7.into()));
        assert_eq!(line, b"{\"error\":\"a\\nb\",\"id\":7}\n");
        let line = Answer::Ok(Value::Null).line(None);
        assert_eq!(line, b"{\"ok\":null}\n");
        assert_eq!(serde_json::from_slice::<Answer>(&line).unwrap(), Answer::Ok(Value::Null));
    }
}
