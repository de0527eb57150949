// Node-RED without its editor, as a service runs it: only the flow, and what it is told of the gateway.
const fs = require("fs");

module.exports = {
    flowFile: "flow.json",
    credentialSecret: false,
    httpAdminRoot: false,
    httpNodeRoot: false,
    telemetry: { enabled: false, updateNotification: false },
    logging: {
        stderr: { level: "warn", handler: () => (line) => console.error(line.msg) },
    },
    functionGlobalContext: {
        gateway: JSON.parse(fs.readFileSync(process.env.GATEWAY_FILE)),
        holdMs: Number(process.env.HOLD_MS),
    },
};
