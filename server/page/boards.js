// How boards look, by task, and some that their solvers need a few steps for.

const sudoku = (width, wide, high, examples) => ({
  width,
  wide,
  high,
  examples,
  empty: ".",
  letters: "123456789".slice(0, width),
  help: `Click a cell and type 1 to ${width}; space empties it, arrows move.`,
});

export const TASKS = {
  sudoku4: sudoku(4, 2, 2, [".12...4......21.", "2..3.4.....2...."]),
  sudoku6: sudoku(6, 3, 2, [
    "....1....6..634.....1...2....34..26.",
    "5.2..6...5..63.4....1......6.4......",
    "...3......414.3.....2...2..1...6..5.",
  ]),
  sudoku9: sudoku(9, 3, 3, [
    ".....2...5.....9.7763....4.....48...93......5...5..3....195.2....8.26........1.6.",
    "..98...7343..6................5.8.....6.4..528.3..6.......7..1....431.9.2.7......",
    "..9.2581..2.3.8....5......6..42..7......4.9...81..9.5.56...............3..8.1....",
  ]),
  maze: {
    width: 12,
    examples: [
      "#############..G......###.#.#.#.#..###..#.#..#.##..#.#..#..###...#.#.#.##.##...#S.###...#.#.#.####.##......##..#.##.##.###.........#############",
      "#############S.....##..##.###.#..#.##...#...##.##.####.#...##...#....#.##.#...#.#.###..##.#...###.#..#.#.#.###G#...#.#.##....#.....#############",
      "#############.G........##.#.#.##.#.##.##.......##...##.#.#.##.#...#.#..##..##.#..#.##.#.#...#..###..##.###.##..#.#.##..###....S...##############",
    ],
    empty: ".",
    letters: "#.SG",
    help: "Click a cell and type # for a wall, a dot, S or G; arrows move. There has to be one shortest path.",
  },
};

const KINDS = { "#": "wall", ".": "open", o: "path", S: "end", G: "end" };

export function classOf(task, letter, given) {
  if (task.letters.includes("#")) return KINDS[letter] ?? "open";
  return given === letter && letter !== task.empty ? "given" : "";
}

export function nameOf(task, letter) {
  const kind = { "#": "wall", o: "path", S: "start", G: "goal" }[letter];
  return kind ?? (letter === task.empty ? "empty" : letter);
}
