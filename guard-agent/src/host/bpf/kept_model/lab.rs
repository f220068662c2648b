//! The world of the model, and its possible events.

use std::ops::Range;

use guard_common::kept::{Moment, Slot, Subject};
use stateright::{Model, Property};

use Part::{Maps, Mounts, Names};

/// A part of the world whose changes one number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Part {
    Mounts,
    Names,
    Maps,
}

impl Part {
    /// Its cells of the world. A change of a mount writes several words, one of the maps several
    /// entries.
    fn cells(self) -> Range<usize> {
        match self {
            Self::Mounts => 0..2,
            Self::Names => 2..3,
            Self::Maps => 3..5,
        }
    }
}

/// Each cell's content is the number of its changes.
type Cells = [u8; 5];
/// The order in which a walk reads them.
const WALK: [usize; 5] = [0, 3, 2, 1, 4];

/// A broken program, or broken surroundings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    None,
    /// Answers are kept without a second look at the numbers.
    NoSecondLook,
    /// The first three words are believed.
    NoCheckWord,
    /// Odd numbers are taken for steady ones.
    OddNumbers,
    /// `rename_lock` is not looked at.
    NoNames,
    /// The words do not tell the generation of the maps.
    NoGeneration,
    /// The words do not tell the subject.
    NoSubject,
    /// A writer counts its change only after it.
    CountsLate,
}

/// Limits on the events of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// The parts that a question depends on, in the order in which their numbers are read. (Parts
    /// that do not change are left out: reading them makes no difference.)
    pub(super) parts: &'static [Part],
    /// Programs, of which `at_once` are on their way.
    pub(super) programs: u8,
    pub(super) at_once: usize,
    /// Changes of mounts, names and maps.
    pub(super) changes: [u8; 3],
    /// Number of times that the agent dies.
    pub(super) deaths: u8,
    /// Programs ask about these.
    pub(super) subjects: &'static [Subject],
}

/// A program's position, and its memory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Stage {
    Before { numbers: Vec<u32> },
    Find { before: Moment, words: Vec<u64> },
    Walk { before: Moment, seen: Vec<u8> },
    Now { before: Moment, answer: u64, numbers: Vec<u32> },
    Keep { words: Slot, written: usize },
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Program {
    stage: Stage,
    subject: usize,
    /// Index in the history of the world at which it began.
    since: usize,
}

/// The answer that the last step has found in the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Found {
    Nothing,
    Valid,
    OutOfDate,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    numbers: [u32; 3],
    /// Steps of the change that is under way.
    changing: [usize; 3],
    /// All that the world was since the first of the programs on their way began; the last is now.
    history: Vec<Cells>,
    slot: Slot,
    programs: Vec<Program>,
    found: Found,
    programs_left: u8,
    changes_left: [u8; 3],
    deaths_left: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Begin { subject: usize },
    Step { program: usize },
    Change(Part),
    AgentDies,
}

pub(super) struct Lab {
    pub(super) fault: Fault,
    pub(super) bounds: Bounds,
}

impl World {
    fn now(&self) -> Cells {
        *self.history.last().expect("the world always is something")
    }

    /// One step of a change: the number gets odd, each cell changes, the number gets even again.
    fn change(&mut self, fault: Fault, part: Part) {
        let index = part as usize;
        let (number, step) = (&mut self.numbers[index], &mut self.changing[index]);
        if *step == 0 {
            self.changes_left[index] -= 1;
            *step = 1;
            if fault != Fault::CountsLate {
                // An agent that has died has left it odd.
                *number |= 1;
                return;
            }
        }
        if let Some(cell) = part.cells().nth(*step - 1) {
            *step += 1;
            let mut cells = self.now();
            cells[cell] += 1;
            self.history.push(cells);
        } else {
            *step = 0;
            *number += if fault == Fault::CountsLate { 2 } else { 1 };
        }
    }

    /// Forgets history that no running program needs, and the order in which the programs came.
    fn tidy(&mut self) {
        let last = self.history.len() - 1;
        let first = self.programs.iter().map(|program| program.since).min().unwrap_or(last);
        self.history.drain(..first);
        self.programs.iter_mut().for_each(|program| program.since -= first);
        self.programs.sort();
    }

    /// Whether the slot holds one whole answer.
    fn is_whole(&self, subjects: &[Subject]) -> bool {
        let [answer, tree, third, _] = self.slot;
        let moment = Moment { tree, generation: (third >> 32) as u32 };
        subjects.iter().any(|subject| subject.kept(answer, moment) == self.slot)
    }
}

impl Lab {
    /// The answer of a walk that reads this.
    fn answer(&self, subject: usize, seen: impl Iterator<Item = u8>) -> u64 {
        seen.fold(subject as u64 + 1, |answer, cell| answer << 4 | u64::from(cell))
    }

    /// The cells that a walk reads, in its order.
    fn walk(&self) -> impl Iterator<Item = usize> {
        WALK.into_iter()
            .filter(|cell| self.bounds.parts.iter().any(|part| part.cells().contains(cell)))
    }

    fn moment(&self, numbers: &[u32]) -> Moment {
        let number = |part: Part| {
            let index = self.bounds.parts.iter().position(|&of| of == part);
            index.map_or(0, |index| numbers[index])
        };
        let names = if self.fault == Fault::NoNames { 0 } else { number(Names) };
        Moment {
            tree: u64::from(number(Mounts)) | u64::from(names) << 32,
            generation: number(Maps),
        }
    }

    fn is_steady(&self, moment: Moment) -> bool {
        self.fault == Fault::OddNumbers || moment.is_steady()
    }

    /// The subject and the moment that the words are made of.
    fn told(&self, subject: usize, moment: Moment) -> (Subject, Moment) {
        let subject = match self.fault {
            Fault::NoSubject => self.bounds.subjects[0],
            _ => self.bounds.subjects[subject],
        };
        let generation = if self.fault == Fault::NoGeneration { 0 } else { moment.generation };
        (subject, Moment { generation, ..moment })
    }

    fn kept(&self, subject: usize, answer: u64, moment: Moment) -> Slot {
        let (subject, moment) = self.told(subject, moment);
        subject.kept(answer, moment)
    }

    fn answer_in(&self, subject: usize, words: Slot, moment: Moment) -> Option<u64> {
        let (told, moment) = self.told(subject, moment);
        if self.fault == Fault::NoCheckWord {
            return (told.kept(words[0], moment)[..3] == words[..3]).then_some(words[0]);
        }
        told.answer_in(words, moment)
    }

    /// One step of a program, as in `cache::find` and `cache::keep`; `None` at its end.
    fn step(&self, world: &mut World, program: Program) -> Option<Program> {
        let Program { stage, subject, since } = program;
        let parts = self.bounds.parts;
        let stage = match stage {
            Stage::Before { mut numbers } => {
                numbers.push(world.numbers[parts[numbers.len()] as usize]);
                if numbers.len() < parts.len() {
                    Stage::Before { numbers }
                } else {
                    let before = self.moment(&numbers);
                    // Else it walks, and keeps nothing.
                    self.is_steady(before).then_some(Stage::Find { before, words: Vec::new() })?
                }
            }
            Stage::Find { before, mut words } => {
                words.push(world.slot[words.len()]);
                let Ok(whole) = Slot::try_from(words.as_slice()) else {
                    return Some(Program { stage: Stage::Find { before, words }, subject, since });
                };
                if let Some(answer) = self.answer_in(subject, whole, before) {
                    let was = |cells: &Cells| {
                        self.answer(subject, self.walk().map(|cell| cells[cell])) == answer
                    };
                    let valid = world.history[since..].iter().any(was);
                    world.found = if valid { Found::Valid } else { Found::OutOfDate };
                    return None;
                }
                Stage::Walk { before, seen: Vec::new() }
            }
            Stage::Walk { before, mut seen } => {
                let mut walk = self.walk().skip(seen.len());
                seen.push(world.now()[walk.next().expect("the walk has not ended")]);
                let answer = self.answer(subject, seen.iter().copied());
                match walk.next() {
                    Some(_) => Stage::Walk { before, seen },
                    None if self.fault == Fault::NoSecondLook => {
                        Stage::Keep { words: self.kept(subject, answer, before), written: 0 }
                    }
                    None => Stage::Now { before, answer, numbers: Vec::new() },
                }
            }
            Stage::Now { before, answer, mut numbers } => {
                numbers.push(world.numbers[parts[numbers.len()] as usize]);
                if numbers.len() < parts.len() {
                    Stage::Now { before, answer, numbers }
                } else {
                    let words = self.kept(subject, answer, before);
                    before.is(self.moment(&numbers)).then_some(Stage::Keep { words, written: 0 })?
                }
            }
            Stage::Keep { words, written } => {
                world.slot[written] = words[written];
                let written = written + 1;
                (written < words.len()).then_some(Stage::Keep { words, written })?
            }
        };
        Some(Program { stage, subject, since })
    }
}

impl Model for Lab {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            numbers: [0; 3],
            changing: [0; 3],
            history: vec![[0; 5]],
            slot: [0; 4],
            programs: Vec::new(),
            found: Found::Nothing,
            programs_left: self.bounds.programs,
            changes_left: self.bounds.changes,
            deaths_left: self.bounds.deaths,
        }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.programs_left > 0 && world.programs.len() < self.bounds.at_once {
            actions
                .extend((0..self.bounds.subjects.len()).map(|subject| Action::Begin { subject }));
        }
        actions.extend((0..world.programs.len()).map(|program| Action::Step { program }));
        let may_change = |part: &Part| {
            world.changing[*part as usize] > 0 || world.changes_left[*part as usize] > 0
        };
        actions.extend(
            [Mounts, Names, Maps]
                .iter()
                .filter(|part| may_change(part))
                .map(|part| Action::Change(*part)),
        );
        if world.deaths_left > 0 && world.changing[Maps as usize] > 0 {
            actions.push(Action::AgentDies);
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        next.found = Found::Nothing;
        match action {
            Action::Begin { subject } => {
                next.programs_left -= 1;
                let stage = Stage::Before { numbers: Vec::new() };
                let program = Program { stage, subject, since: next.history.len() - 1 };
                // Nothing counts as true that no longer was when it first looked at a number.
                let program = self.step(&mut next, program);
                next.programs.extend(program);
            }
            Action::Step { program } => {
                let program = next.programs.remove(program);
                let program = self.step(&mut next, program);
                next.programs.extend(program);
            }
            Action::Change(part) => next.change(self.fault, part),
            Action::AgentDies => {
                next.deaths_left -= 1;
                next.changing[Maps as usize] = 0;
            }
        }
        next.tidy();
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(VALID, |_, world: &World| world.found != Found::OutOfDate),
            Property::sometimes("an answer from after a change is found", |_, world: &World| {
                world.found == Found::Valid && world.now() != [0; 5]
            }),
            Property::sometimes("two programs write into the slot", |_, world: &World| {
                let writing = |program: &&Program| matches!(program.stage, Stage::Keep { .. });
                world.programs.iter().filter(writing).count() == 2
            }),
            Property::sometimes("the slot stays torn", |lab: &Lab, world: &World| {
                world.slot[3] != 0
                    && world.programs.is_empty()
                    && !world.is_whole(lab.bounds.subjects)
            }),
        ]
    }
}

/// The invariant.
pub(super) const VALID: &str = "an answer that is found was true at a moment since its reader \
                                began";
