// Pick or type a puzzle, and watch its solver improve it, step by step.

import { events } from "./api.js";
import { TASKS } from "./boards.js";
import { digestLine, find, make, number, runs } from "./dom.js";
import { Grid } from "./grid.js";

const PAUSE_MILLISECONDS = 450; // a step takes less time than an eye does
const calm = matchMedia("(prefers-reduced-motion: reduce)");

let steps = [];
let grid;
let models;

export function startPuzzles(served) {
  models = served;
  const [solver, example, text] = [find("solver"), find("example"), find("puzzle")];
  grid = new Grid(find("board"), (typed) => {
    text.value = typed;
    example.value = "";
    forget();
  });
  solver.replaceChildren(...Object.keys(models).map((name) => make("option", { textContent: name })));
  solver.addEventListener("change", offer);
  example.addEventListener("change", () => open(example.value || empty()));
  text.addEventListener("change", () => open(text.value.trim()));
  find("step").addEventListener("input", () => show(number("step")));
  runs(find("puzzle-form"), find("stop-puzzle"), solve);
  offer();
}

const task = () => TASKS[models[find("solver").value].task];
const empty = () => task().empty.repeat(task().width ** 2);

function offer() {
  const puzzles = task().examples.map((text, index) => make("option", { value: text, textContent: `Example ${index + 1}` }));
  find("example").replaceChildren(...puzzles, make("option", { value: "", textContent: "my own" }));
  find("board-help").textContent = task().help;
  open(task().examples[0]);
}

function open(text) {
  find("puzzle").value = text;
  find("example").value = task().examples.includes(text) ? text : "";
  forget();
  if (text.length === task().width ** 2) grid.open(task(), text);
}

function forget() {
  steps = [];
  find("step-label").hidden = true;
  find("puzzle-told").textContent = "";
  find("puzzle-digest").replaceChildren();
}

async function solve(signal) {
  const puzzle = find("puzzle").value;
  open(puzzle);
  const body = { model: find("solver").value, grid: puzzle, max_steps: number("puzzle-steps"), stream: true };
  for await (const event of events("v1/solve", { body, signal })) {
    if (event.object === "solution") {
      end(event);
    } else {
      steps.push(event);
      show(steps.length);
      if (!calm.matches) await new Promise((resolve) => setTimeout(resolve, PAUSE_MILLISECONDS));
      signal.throwIfAborted();
    }
  }
}

function show(number) {
  const grids = [grid.given, ...steps.map((step) => step.grid)];
  grid.show(grids[number], grids[Math.max(number - 1, 0)]);
  const step = steps[number - 1];
  find("puzzle-told").textContent = step
    ? `step ${step.step} · ${step.violations} cells wrong · q ${step.q.value.toFixed(2)}`
    : "as it was given";
}

function end(answer) {
  find("step-label").hidden = !steps.length;
  Object.assign(find("step"), { max: steps.length, value: steps.length });
  const halts = { q: "its own verdict", verified: "its own verdict, and the rules hold", stable: "the grid held still" };
  const halted = halts[answer.halted_by] ?? "no step was left";
  const after = `after ${answer.steps} ${answer.steps === 1 ? "step" : "steps"}`;
  find("puzzle-told").textContent =
    answer.status === "unsolvable" ? answer.reason ?? "there is no solution" : `${answer.status} ${after}: ${halted}`;
  find("puzzle-digest").replaceChildren(digestLine(answer.digest));
}
