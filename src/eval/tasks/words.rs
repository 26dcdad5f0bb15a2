//! Words for the tasks: common ones, and pronounceable made-up ones.
//!
//! None of these words is in the demo's vocabulary, so the model sees each of them letter by letter.

use super::tokenizer::is_entry;
use crate::rng::Rng;
use std::sync::OnceLock;

/// Nouns with a regular plural.
pub const NOUNS: &str = "fox cat dog hat bag box bus cup pen map car bed key boy toy day egg ant bee cow pig hen owl bat \
    leg arm ear eye nose lip bone hand face tree lake river hill beach park farm road path town city lady baby pony \
    puppy bunny berry cherry party story penny dress glass class kiss cross brush bush dish wish bench branch lunch \
    peach witch match watch patch tax six wax fax plate spoon bowl table chair lamp clock phone wall floor \
    roof brick stone rock sand coin ring shirt coat sock shoe glove belt button pocket apple pear grape lemon melon \
    banana orange carrot onion bean cake pie cookie candy jelly cup plant flower garden seed root stem rose tulip daisy \
    bird duck swan goat horse tiger lion bear monkey turtle frog snake spider robot rocket train boat ship plane truck \
    bike wheel engine bridge tower castle tent house barn shop school book page song drum flute guitar bell \
    horn game ball kite doll card puzzle king queen prince doctor nurse farmer baker pilot sailor teacher friend cousin \
    sister brother uncle aunt winter summer spring autumn cloud storm star moon planet comet island desert forest valley \
    ocean wave pool well bucket basket bottle jar jug kettle oven fridge broom towel soap comb pillow blanket carpet mirror \
    ladder hammer nail rope chain candle lantern torch match tunnel circle square triangle pencil crayon marker";

/// Verbs with a regular past in -ed, -d or -ied, without doubled consonants.
pub const VERBS: &str = "walk talk jump play work cook look call help wash watch push pull turn kick pick pack park paint plant \
    clean climb cross crawl dress miss mix fix rest test want wait shout lift list land hand load roll fill spill smell \
    yell push reach touch march stretch search follow borrow enter listen visit travel order gather \
    bake like love hope move live smile dance race chase erase place raise praise share shave skate slice taste \
    trade tune use wave wipe whistle juggle tickle giggle wiggle carry cry try dry fry hurry marry worry study copy empty \
    tidy reply bury enjoy stay pray stray delay destroy obey annoy sail boil join nail rain snow mow row glow float \
    shovel whisper wander wonder remember deliver cover discover mention point paint print point hunt melt shift \
    drift knock check kiss hiss pass guess press relax wax tax buzz fetch itch scratch hatch match brush crush rush blush";

/// Verbs for polite requests.
pub const DEEDS: &str = "open close move clean find fix bring watch hold paint take lift";
/// Objects of the verbs [`DEEDS`].
pub const THINGS: &str = "door window table chair box book bag cup lamp plate clock phone garden bottle letter basket \
    picture ladder mirror blanket kettle bucket hammer candle radio carpet pencil button bicycle piano kitchen garage bottle wallet drawer cabinet curtain jacket sofa \
    suitcase package parcel statue candle fence gate shelf oven fridge camera guitar violin tractor wagon";

/// Returns the words of a list that are not in the demo's vocabulary.
fn usable(list: &'static str) -> Vec<&'static str> {
    list.split_whitespace().filter(|w| !is_entry(w)).collect()
}

fn nouns() -> &'static [&'static str] {
    static USABLE: OnceLock<Vec<&str>> = OnceLock::new();
    USABLE.get_or_init(|| usable(NOUNS))
}

fn verbs() -> &'static [&'static str] {
    static USABLE: OnceLock<Vec<&str>> = OnceLock::new();
    USABLE.get_or_init(|| usable(VERBS))
}

fn pick(words: &[&str], rng: &mut Rng) -> String {
    words[rng.below(words.len() as u32) as usize].to_string()
}

/// Makes up a word of about `syllables` syllables: onset and vowel each, and a coda at the end.
pub fn made_up(syllables: u32, rng: &mut Rng) -> String {
    const ONSETS: &str = "b c d f g h j k l m n p r s t v w z bl br cl cr dr fl fr gl gr pl pr sh sl sm sn sp st th tr";
    const CODAS: &str = "b d f g k l m n p r t sh ch st nd mp nk lt rm x ss y";
    let (onsets, codas): (Vec<_>, Vec<_>) = (ONSETS.split(' ').collect(), CODAS.split(' ').collect());
    loop {
        let mut word = String::new();
        for _ in 0..syllables {
            word += &pick(&onsets, rng);
            word.push(char::from(b"aeiou"[rng.below(5) as usize]));
        }
        word += &pick(&codas, rng);
        if !is_entry(&word) {
            return word;
        }
    }
}

/// Draws a word, half of the time a common one and otherwise a made-up one, of three to `longest` letters.
pub fn word(longest: usize, rng: &mut Rng) -> String {
    loop {
        let word = match rng.below(4) {
            0 | 1 => pick(nouns(), rng),
            2 => made_up(1, rng),
            _ => made_up(1 + u32::from(longest > 4), rng),
        };
        if (3..=longest).contains(&word.len()) {
            return word;
        }
    }
}

/// Draws a noun: a common one, or a made-up one.
pub fn noun(rng: &mut Rng) -> String {
    if rng.below(2) == 0 { pick(nouns(), rng) } else { made_up(1, rng) }
}

/// Draws a verb with a regular past: a common one, or a made-up one.
pub fn verb(rng: &mut Rng) -> String {
    loop {
        let verb = if rng.below(2) == 0 { pick(verbs(), rng) } else { made_up(1, rng) };
        // Made-up verbs that would double their last consonant (brop, bropped) are left out, so that the rule stays simple.
        let doubles = |w: &str| {
            let mut tail = w.bytes().rev();
            let vowel = |b: Option<u8>| b.is_some_and(|b| b"aeiou".contains(&b));
            !vowel(tail.next()) && vowel(tail.next()) && !vowel(tail.next())
        };
        let known = verbs().contains(&verb.as_str());
        if known || !doubles(&verb) || verb.ends_with(['x', 'y', 'w']) {
            return verb;
        }
    }
}

/// Draws a request, such as "open the door".
pub fn request(rng: &mut Rng) -> String {
    let (deeds, things): (Vec<_>, Vec<_>) = (DEEDS.split_whitespace().collect(), THINGS.split_whitespace().collect());
    format!("{} the {}", pick(&deeds, rng), pick(&things, rng))
}

/// Returns the regular plural of a noun.
pub fn plural(noun: &str) -> String {
    if ["s", "x", "z", "ch", "sh"].iter().any(|e| noun.ends_with(e)) {
        format!("{noun}es")
    } else if consonant_y(noun) {
        format!("{}ies", &noun[..noun.len() - 1])
    } else {
        format!("{noun}s")
    }
}

/// Returns the regular past tense of a verb.
pub fn past(verb: &str) -> String {
    if verb.ends_with('e') {
        format!("{verb}d")
    } else if consonant_y(verb) {
        format!("{}ied", &verb[..verb.len() - 1])
    } else {
        format!("{verb}ed")
    }
}

fn consonant_y(word: &str) -> bool {
    let mut tail = word.bytes().rev();
    tail.next() == Some(b'y') && tail.next().is_some_and(|b| !b"aeiou".contains(&b))
}
