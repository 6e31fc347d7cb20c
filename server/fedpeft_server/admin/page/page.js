"use strict";
// The page of the administration API. Whatever comes from the coordinator is text: nothing is parsed as HTML.

const $ = (id) => document.getElementById(id);
const AUDIT_AT_ONCE = 50;
let me = null; // who is signed in: name, role, check
let stream = null; // the open EventSource
let chosen = null; // the number of the run that is shown
let seen = ""; // of the runs and devices that are shown
let oldest = null; // the lowest number of the audit records that are shown

function make(tag, attributes = {}, ...children) {
  const node = tag === "svg" || attributes.svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "click") node.addEventListener("click", value);
    else if (name === "submit") node.addEventListener("submit", value);
    else if (name !== "svg") node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const cell = (label, ...children) => make("td", { "data-label": label }, ...children);
const show = (id, ...children) => $(id).replaceChildren(...children);
const may = (role) => ["viewer", "submitter", "admin"].indexOf(me?.role) >= ["viewer", "submitter", "admin"].indexOf(role);
const time = (utc) => new Date(utc * 1000).toISOString().slice(0, 16).replace("T", " ");
const number = (value, digits) => (value === null ? "–" : value.toFixed(digits));
function size(bytes) {
  const units = ["bytes", "KiB", "MiB", "GiB"];
  const step = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(1, bytes)) / 10));
  return `${(bytes / 1024 ** step).toFixed(step ? 1 : 0)} ${units[step]}`;
}

function say(text, isBad = false) {
  $("message").textContent = text;
  $("message").className = isBad ? "bad" : "good";
}

async function ask(method, path, given) {
  const headers = {};
  if (given !== undefined) headers["content-type"] = "application/json";
  if (me?.check) headers["x-fedpeft-check"] = me.check;
  const answer = await fetch(path, { method, headers, body: given === undefined ? undefined : JSON.stringify(given) });
  const said = await answer.json();
  if (answer.ok) return said;
  if (answer.status === 401 && me) signedOut("The session has ended; sign in again.");
  throw new Error(said.error || `the coordinator answered ${answer.status}`);
}

async function attempt(doing, done) {
  try {
    const answer = await doing();
    if (done) say(done);
    return answer;
  } catch (error) {
    say(error.message, true);
    return null;
  }
}

// Signing in and out

function signedIn(who) {
  me = who;
  document.body.className = `${who.role}-role`;
  $("name").textContent = `${who.name} (${who.role})`;
  $("who").hidden = $("console").hidden = false;
  $("sign-in").hidden = true;
  watch();
  refresh();
  audit();
}

function signedOut(text) {
  me = null;
  seen = "";
  stream?.close();
  $("who").hidden = $("console").hidden = true;
  $("sign-in").hidden = false;
  for (const id of ["recent", "figures", "run-rows", "device-rows", "token-rows", "audit-rows", "run-detail", "made-token"]) show(id);
  if (text) say(text, true);
  $("token").focus();
}

$("sign-in-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const token = $("token").value.trim();
  $("token").value = "";
  const who = await attempt(() => ask("POST", "/v1/session", { token }), "Signed in.");
  if (who) {
    signedIn(who);
    $("main").focus();
  }
});

$("sign-out").addEventListener("click", async () => {
  await attempt(() => ask("DELETE", "/v1/session"));
  signedOut("");
  say("Signed out.");
});

// What goes on

function watch() {
  stream?.close();
  stream = new EventSource("/v1/events");
  stream.addEventListener("open", () => ($("link").textContent = "Live."));
  stream.addEventListener("error", async () => {
    $("link").textContent = "The connection is lost; trying again.";
    if (stream.readyState === EventSource.CLOSED && me) {
      stream.close();
      const who = await attempt(() => ask("GET", "/v1/session"));
      if (who && !who.name) signedOut("The session has ended; sign in again.");
      else setTimeout(() => me && watch(), 3000);
    }
  });
  stream.addEventListener("status", (event) => overview(JSON.parse(event.data)));
}

function overview(found) {
  const live = found.coordinator;
  $("doing").textContent = live ? live.now || "Nothing is running." : "The coordinator is down.";
  const online = live ? live.devices.filter((device) => device.online).length : 0;
  const waiting = found.runs.filter((run) => run.state === "queued").length;
  const pending = live ? live.devices.filter((device) => device.status === "pending").length : 0;
  show("figures", ...figures({ "Devices online": online, "Wait for approval": pending, "Runs waiting": waiting, "Last round": found.committed || "–" }));
  const list = $("recent");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  show("recent", ...found.recent.map((one) => make("li", { class: one.kind === "round.failed" || one.kind === "round.aborted" ? "bad" : "" },
    [one.at.slice(11, 19), one.round === null ? "" : `round ${one.round}`, one.kind.replace("round.", ""), one.device, one.stage, one.detail].filter(Boolean).join("  "))));
  if (!found.recent.length) show("recent", make("li", {}, "No run is at work."));
  if (atEnd) list.scrollTop = list.scrollHeight;
  runs(found.runs);
  const now = JSON.stringify([found.runs, found.committed, live?.devices]);
  if (now !== seen) {
    seen = now;
    refresh();
  }
}

const figures = (named) => Object.entries(named).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, String(value))));

async function refresh() {
  if (!me) return;
  const [devices, tokens] = await Promise.all([
    attempt(() => ask("GET", "/v1/devices")),
    may("admin") ? attempt(() => ask("GET", "/v1/join-tokens")) : null,
  ]);
  if (devices) deviceRows(devices);
  if (tokens) tokenRows(tokens);
  if (chosen !== null) await detail(chosen, false);
}

// Runs

let runsShown = "";
function runs(found) {
  if (JSON.stringify(found) === runsShown && $("run-rows").children.length) return; // a button keeps the focus
  runsShown = JSON.stringify(found);
  show("run-rows", ...[...found].reverse().map((run) => {
    const buttons = [make("button", { type: "button", class: "quiet", click: () => detail(run.number, true) }, `Show run ${run.number}`)];
    const act = (verb, word) => make("button", { type: "button", click: () => attempt(() => ask("POST", `/v1/runs/${run.number}/${verb}`), `Run ${run.number}: ${word}.`) }, `${verb[0].toUpperCase()}${verb.slice(1)}`);
    if (may("submitter") && ["queued", "running"].includes(run.state)) buttons.push(act("stop", "asked to stop"));
    if (may("submitter") && ["stopped", "failed"].includes(run.state)) buttons.push(act("resume", "queued again"));
    return make("tr", {}, make("th", { scope: "row" }, String(run.number)), cell("Name", run.name), cell("State", run.state), cell("Reason", run.reason), cell("Do", ...buttons));
  }));
  if (!found.length) show("run-rows", make("tr", {}, make("td", { colspan: "5" }, "No run was submitted yet.")));
}

async function detail(run, byPerson) {
  const found = await attempt(() => ask("GET", `/v1/runs/${run}`));
  if (!found) return;
  chosen = run;
  $("run-title").textContent = `Run ${found.number}: ${found.name} (${found.state})`;
  const rounds = found.rounds;
  const sum = (name) => rounds.reduce((total, row) => total + row[name], 0);
  const budget = found.privacy.unit === "none" ? "no noise" : `${found.privacy.unit}, epsilon ${found.privacy.epsilon ?? "–"}, delta ${found.privacy.delta ?? "–"}`;
  const lost = rounds.flatMap((row) => row.devices.filter((device) => device.state !== "summed").map((device) => ({ round: row.round, ...device })));
  show("run-detail",
    make("dl", {}, ...figures({ Rounds: rounds.length, "From devices": size(sum("bytes_up")), "To devices": size(sum("bytes_down")), Privacy: budget })),
    found.reason ? make("p", { class: "bad" }, found.reason) : null,
    make("div", { class: "charts" },
      chart("Loss", rounds.map((row) => [row.round, row.loss]), 3),
      chart("Accuracy", rounds.map((row) => [row.round, row.accuracy]), 3),
      chart("KiB a round", rounds.map((row) => [row.round, (row.bytes_up + row.bytes_down) / 1024]), 1),
      chart("Seconds a round", rounds.map((row) => [row.round, row.seconds]), 1)),
    make("h3", {}, "Privacy budget"),
    found.privacy.lines.length ? make("ul", {}, ...found.privacy.lines.map((line) => make("li", {}, line))) : make("p", { class: "hint" }, found.privacy.unit === "none" ? "The run adds no noise: the sum of all devices is opened as it is." : "Nothing was spent yet."),
    folded(`Rounds (${rounds.length})`, table(["Round", "Loss", "Accuracy", "Devices", "Traffic", "Seconds", "Remark"], rounds.slice(-200).reverse().map((row) =>
      [String(row.round), number(row.loss, 4), number(row.accuracy, 3), `${row.survived} of ${row.invited}`, size(row.bytes_up + row.bytes_down), number(row.seconds, 1), row.burnt ? `burnt: ${row.burnt}` : ""]), "Rounds")),
    folded(`Devices that were not in a sum (${lost.length})`, lost.length ? table(["Round", "Device", "State", "Reason"], lost.slice(-200).reverse().map((one) => [String(one.round), one.name, one.state, one.reason]), "Devices that were not in a sum") : make("p", { class: "hint" }, "None.")),
    found.run ? make("p", {}, make("a", { href: `/v1/runs/${found.number}/report`, download: "" }, "Report")) : null,
    make("div", { id: "files" }));
  if (found.run && may("submitter")) files(found.number);
  if (byPerson) $("run-title").focus();
}

async function files(run) {
  const answer = await fetch(`/v1/runs/${run}/adapter`);
  if (!answer.ok) return;
  const found = await answer.json();
  show("files", make("h3", {}, `Adapter (${found.slot})`), make("ul", {}, ...found.files.map((file) =>
    make("li", {}, make("a", { href: `/v1/runs/${run}/adapter/${encodeURIComponent(file.name)}`, download: file.name }, file.name), ` ${size(file.bytes)}`))));
}

const folded = (title, content) => make("details", unfolded.has(title.split(" (")[0]) ? { open: "" } : {}, make("summary", {}, title), content);
const unfolded = new Set(); // what a person has opened stays open when the run goes on
$("run-detail").addEventListener("toggle", (event) => {
  const title = event.target.firstChild.textContent.split(" (")[0];
  if (event.target.isConnected) unfolded[event.target.open ? "add" : "delete"](title);
}, true);

function table(heads, rows, label) {
  return make("table", { "aria-label": label }, make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, make("th", { scope: "row" }, `${heads[0]} ${row[0]}`), ...row.slice(1).map((text, at) => cell(heads[at + 1], text))))));
}

function chart(name, points, digits) {
  const drawn = points.filter(([, y]) => y !== null && Number.isFinite(y));
  if (!drawn.length) return make("figure", {}, make("figcaption", {}, `${name}: nothing measured yet`));
  const [width, height, left, right, top, bottom] = [320, 150, 46, 8, 8, 22];
  const xs = drawn.map(([x]) => x), ys = drawn.map(([, y]) => y);
  const [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const x = (value) => left + ((width - left - right) * (value - x0)) / (x1 - x0 || 1);
  const y = (value) => (y1 === y0 ? (top + height - bottom) / 2 : top + ((height - top - bottom) * (y1 - value)) / (y1 - y0));
  const last = drawn[drawn.length - 1];
  const label = `${name}: ${ys[0].toFixed(digits)} in round ${xs[0]}, ${last[1].toFixed(digits)} in round ${last[0]}`;
  const text = (at, up, anchor, said) => make("text", { svg: 1, x: at, y: up, "text-anchor": anchor }, said);
  const picture = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    ...(y1 === y0 ? [y0] : [y0, y1]).map((value) => make("line", { svg: 1, class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) })),
    ...(y1 === y0 ? [y0] : [y0, y1]).map((value) => text(left - 5, y(value) + 4, "end", value.toFixed(digits))),
    text(left, height - 6, "start", String(x0)), x1 > x0 ? text(width - right, height - 6, "end", String(x1)) : null,
    make("polyline", { svg: 1, class: "curve", points: drawn.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" ") }),
    make("circle", { svg: 1, class: "dot", cx: x(last[0]), cy: y(last[1]), r: 3.5 }));
  return make("figure", {}, make("figcaption", {}, `${name}: ${last[1].toFixed(digits)}`), picture);
}

$("config-file").addEventListener("change", async () => {
  const [file] = $("config-file").files;
  if (file) $("config").value = await file.text();
});

$("submit-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const run = await attempt(() => ask("POST", "/v1/runs", { config: $("config").value }));
  if (run) {
    say(`Run ${run.number} (${run.name}) is queued.`);
    $("config").value = $("config-file").value = "";
  }
});

// Devices and join tokens

let devicesShown = "";
function deviceRows(found) {
  if (JSON.stringify(found) === devicesShown && $("device-rows").children.length) return; // what is typed stays
  devicesShown = JSON.stringify(found);
  show("device-rows", ...found.map((device) => {
    const state = device.online ? make("span", { class: "good" }, `${device.status}, online`) : device.status;
    return make("tr", {}, make("th", { scope: "row" }, device.label ? `${device.label} (${device.name})` : device.name), cell("Status", state, device.reason ? ` ${device.reason}` : ""), cell("Organisation", device.organisation),
      cell("Hardware", device.hardware), cell("Certificate until", (device.certificate_until || "–").slice(0, 10)), cell("Do", ...(may("admin") ? deciding(device) : [])));
  }));
  if (!found.length) show("device-rows", make("tr", {}, make("td", { colspan: "6" }, "No device has joined yet.")));
}

function deciding(device) {
  const act = async (verb, given, done) => {
    if (await attempt(() => ask("POST", `/v1/devices/${device.name}/${verb}`, given), `${device.name} ${done}.`)) refresh();
  };
  const sure = (question, then) => () => window.confirm(question) && then();
  if (device.status === "pending") {
    const code = make("input", { "aria-label": `Code that the owner of ${device.name} reads out`, placeholder: "code", autocomplete: "off", required: "" });
    const form = make("form", { submit: (event) => { event.preventDefault(); act("approve", { code: code.value }, "is admitted"); } }, code, make("button", { type: "submit" }, "Approve"));
    return [form, make("button", { type: "button", class: "quiet", click: sure(`Turn ${device.name} away?`, () => act("deny", {}, "is turned away")) }, "Deny")];
  }
  if (device.status === "active") return [make("button", { type: "button", class: "quiet", click: sure(`Put ${device.name} out for good?`, () => act("revoke", {}, "is out")) }, "Revoke")];
  return [];
}

function tokenRows(found) {
  show("token-rows", ...found.map((token) => make("tr", {}, make("th", { scope: "row" }, token.id), cell("State", token.state), cell("Used", `${token.used} of ${token.uses}`), cell("Until", time(token.expires_utc)),
    cell("Organisation", token.organisation), cell("Do", token.state === "good" ? make("button", { type: "button", class: "quiet", click: async () => { if (await attempt(() => ask("POST", `/v1/join-tokens/${token.id}/revoke`), `Token ${token.id} admits nobody else.`)) refresh(); } }, "Revoke") : null))));
  if (!found.length) show("token-rows", make("tr", {}, make("td", { colspan: "6" }, "None.")));
}

$("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = { organisation: $("organisation").value, uses: Number($("uses").value), ttl_s: 3600 * Number($("hours").value) };
  const made = await attempt(() => ask("POST", "/v1/join-tokens", given), "Made; it is shown once.");
  if (!made) return;
  show("made-token", "On the device: ", make("code", { class: "secret" }, `fedpeft client join ${made.token} --data FILE`));
  refresh();
});

// Audit log

async function audit(before) {
  const query = before === undefined ? "" : `&before=${before}`;
  const found = await attempt(() => ask("GET", `/v1/audit?most=${AUDIT_AT_ONCE}${query}`));
  if (!found) return;
  oldest = found.length ? found[found.length - 1].sequence : 0;
  $("audit-older").disabled = oldest === 0;
  show("audit-rows", ...found.map((one) => make("tr", {}, make("th", { scope: "row" }, String(one.sequence)), cell("Time (UTC)", one.utc.slice(0, 19).replace("T", " ")), cell("Event", one.event),
    cell("Who", one.actor), cell("What", one.subject), cell("Details", Object.entries(one.detail).map(([name, value]) => `${name}: ${value}`).join(", ")))));
  if (!found.length) show("audit-rows", make("tr", {}, make("td", { colspan: "6" }, "Nothing was recorded yet.")));
}

$("audit-older").addEventListener("click", () => audit(oldest));
$("audit-newest").addEventListener("click", () => audit());

(async () => {
  const who = await attempt(() => ask("GET", "/v1/session"));
  if (who?.name) signedIn(who);
  else signedOut("");
})();
