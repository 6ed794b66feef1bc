// What is served decides what the page offers.

import { json, keepKey } from "./api.js";
import { find } from "./dom.js";
import { startChat } from "./chat.js";
import { startCheck } from "./check.js";
import { startCompare } from "./compare.js";
import { startPuzzles } from "./puzzles.js";
import { startServer } from "./server.js";

const RETRY_MILLISECONDS = 2000;
const tabs = [...document.querySelectorAll("[role=tab]")];
const offered = () => tabs.filter((tab) => !tab.hidden);
const panel = (tab) => find(tab.getAttribute("aria-controls"));

function show(chosen) {
  for (const tab of tabs) {
    tab.ariaSelected = String(tab === chosen);
    tab.tabIndex = tab === chosen ? 0 : -1;
    panel(tab).hidden = tab !== chosen;
  }
  history.replaceState(null, "", `#${panel(chosen).id}`);
}

for (const tab of tabs) {
  tab.addEventListener("click", () => show(tab));
  tab.addEventListener("keydown", (event) => {
    const all = offered();
    const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -all.indexOf(tab), End: -1 - all.indexOf(tab) };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const next = all.at((all.indexOf(tab) + steps[event.key]) % all.length);
    show(next);
    next.focus();
  });
}

document.addEventListener("keyneeded", () => {
  find("key-form").hidden = false;
});
find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  keepKey(find("key").value);
  find("key").value = "";
  find("key-form").hidden = true;
  connect();
});

let connected = false;

async function connect() {
  if (connected) return;
  let info, template;
  try {
    info = await json("server_info");
    if (info.model) ({ chat_template: template } = await json("tokenizer_info"));
  } catch (error) {
    find("served").textContent = error.message;
    if (error.status !== 401) setTimeout(connect, RETRY_MILLISECONDS);
    return;
  }
  connected = true;
  const solvers = Object.keys(info.solvers?.models ?? {});
  find("served").textContent = [info.model ?? [], solvers].flat().join(" · ");
  const kinds = [];
  if (info.model) {
    const model = { info, chats: Boolean(template) };
    startChat(model);
    startCompare(model);
    startCheck(model);
    kinds.push("chat", "compare", "check");
  }
  if (solvers.length) {
    startPuzzles(info.solvers.models);
    kinds.push("puzzles");
  }
  startServer(info);
  kinds.push("server");
  for (const tab of tabs) tab.hidden = !kinds.includes(panel(tab).id);
  show(offered().find((tab) => `#${panel(tab).id}` === location.hash) ?? offered()[0]);
}

connect();
