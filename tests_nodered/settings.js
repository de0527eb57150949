// Node-RED as it is installed, but for where it listens (any free port), that it tries the broker again soon,
// and that its editor does not begin with a tour.
module.exports = {
    uiHost: "127.0.0.1",
    uiPort: "0",
    flowFile: "flows.json",
    credentialSecret: false,
    mqttReconnectTime: 500,
    editorTheme: { tours: false },
    telemetry: { enabled: false, updateNotification: false },
};
