// Usage: node validate.mjs FILE
// Validates an AsyncAPI document with AsyncAPI's own parser; whatever that remarks, a hint too, is a failure.
import { readFile } from "node:fs/promises";
import { Parser } from "@asyncapi/parser";

const SEVERITIES = ["error", "warning", "info", "hint"];

const [file] = process.argv.slice(2);
const { document, diagnostics } = await new Parser().parse(await readFile(file, "utf8"), { source: file });
for (const { range, severity, path, message } of diagnostics) {
  console.error(`${file}:${range.start.line + 1}: ${SEVERITIES[severity]}: ${path.join(".")}: ${message}`);
}
if (!document || diagnostics.length > 0) process.exit(1);
const count = (what) => `${document[what]().all().length} ${what}`;
console.log(`${file}: valid AsyncAPI ${document.version()}: ${count("channels")}, ${count("operations")}, ${count("messages")}`);
