//! What a message is.

codes! {
    /// Opcodes (protocol, sections 2, 3, 4 and 10).
    Opcode: u8 {
        /// Reads a document.
        Get = 0x00,
        /// Writes a document.
        Set = 0x01,
        /// Writes a document that must not exist.
        Add = 0x02,
        /// Writes a document that must exist.
        Replace = 0x03,
        /// Deletes a document.
        Delete = 0x04,
        /// Adds to a counter.
        Increment = 0x05,
        /// Subtracts from a counter.
        Decrement = 0x06,
        /// Nothing; keeps a connection alive.
        Noop = 0x0a,
        /// Asks for the server's version.
        Version = 0x0b,
        /// Appends to a document.
        Append = 0x0e,
        /// Prepends to a document.
        Prepend = 0x0f,
        /// Asks for statistics.
        Stat = 0x10,
        /// Changes when a document expires.
        Touch = 0x1c,
        /// Agrees on features.
        Hello = 0x1f,
        /// Asks for the mechanisms of authentication.
        SaslListMechs = 0x20,
        /// Begins authentication.
        SaslAuth = 0x21,
        /// Goes on with authentication.
        SaslStep = 0x22,
        /// Begins a TAP stream.
        TapConnect = 0x40,
        /// TAP: a document was written.
        TapMutation = 0x41,
        /// TAP: a document was deleted.
        TapDelete = 0x42,
        /// TAP: the bucket was emptied.
        TapFlush = 0x43,
        /// TAP: a command to the receiver.
        TapOpaque = 0x44,
        /// TAP: the state of a vbucket.
        TapVbucketSet = 0x45,
        /// TAP: a checkpoint begins.
        TapCheckpointStart = 0x46,
        /// TAP: a checkpoint is over.
        TapCheckpointEnd = 0x47,
        /// Asks for the sequence numbers of all vbuckets.
        GetAllVbSeqnos = 0x48,
        /// Makes a connection a DCP one.
        DcpOpen = 0x50,
        /// Asks a consumer to open a stream.
        DcpAddStream = 0x51,
        /// Closes a stream.
        DcpCloseStream = 0x52,
        /// Opens a stream.
        DcpStreamRequest = 0x53,
        /// Asks for a failover log, on a DCP connection.
        DcpGetFailoverLog = 0x54,
        /// A stream is over.
        DcpStreamEnd = 0x55,
        /// A snapshot begins.
        DcpSnapshotMarker = 0x56,
        /// A document was written.
        DcpMutation = 0x57,
        /// A document was deleted.
        DcpDeletion = 0x58,
        /// A document has expired.
        DcpExpiration = 0x59,
        /// The bucket was emptied; only old servers.
        DcpFlush = 0x5a,
        /// The state of a vbucket.
        DcpSetVbucketState = 0x5b,
        /// Is the other side alive?
        DcpNoop = 0x5c,
        /// Bytes were consumed.
        DcpBufferAck = 0x5d,
        /// Sets an option of the connection.
        DcpControl = 0x5e,
        /// Collections or scopes have changed.
        DcpSystemEvent = 0x5f,
        /// A durable write has begun.
        DcpPrepare = 0x60,
        /// A replica has durable writes up to a number.
        DcpSeqnoAcknowledged = 0x61,
        /// A durable write holds.
        DcpCommit = 0x62,
        /// A durable write was given up.
        DcpAbort = 0x63,
        /// The position moves without an event.
        DcpSeqnoAdvanced = 0x64,
        /// A snapshot in the order of keys begins or ends.
        DcpOsoSnapshot = 0x65,
        /// Documents from the cache of the other side.
        DcpCacheTransfer = 0x66,
        /// There are no more of them.
        DcpCacheTransferEnd = 0x67,
        /// Selects a bucket.
        SelectBucket = 0x89,
        /// Asks how far a vbucket is persisted.
        ObserveSeqno = 0x91,
        /// Asks for a failover log, outside DCP.
        GetFailoverLog = 0x96,
        /// Forgets a registered TAP client.
        DeregisterTapClient = 0x9e,
        /// Changes the vbuckets of a TAP stream.
        ChangeVbFilter = 0xb0,
        /// Asks for the cluster map.
        GetClusterConfig = 0xb5,
        /// Asks for the collections of the bucket.
        GetCollectionsManifest = 0xba,
        /// Asks for a collection's number.
        GetCollectionId = 0xbb,
        /// Asks for a scope's number.
        GetScopeId = 0xbc,
        /// Asks for the meaning of status codes.
        GetErrorMap = 0xfe,
    }
}
