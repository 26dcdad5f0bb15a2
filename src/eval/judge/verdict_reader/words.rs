//! Words of the grammar of verdicts, as lists separated by spaces.

/// Returns whether a list contains a word.
pub fn has(list: &str, word: &str) -> bool {
    list.split(' ').any(|listed| listed == word)
}

/// Nouns that may stand before a side's letter.
pub const NOUNS: &str = "output response answer option choice candidate assistant model completion reply text summary version system \
    agent solution translation outputs responses answers continuation generation chatbot letter";

/// Words that may stand before a side without changing the meaning, besides [`NOUNS`], [`LABELS`] and [`FOREIGN`].
pub const LEADS: &str = "the final verdict is my our so therefore thus hence overall i we choose chose pick picked select selected \
    prefer favor favour go going vote for with would will say think believe conclude judge that better best one \
    preferred winner winning decision judgment judgement result conclusion chosen preference of two these it's \
    it i'd i'll be must clearly definitely certainly clear sure ok okay yes correct here evaluation assessment \
    json selection superior finally ultimately and consequently accordingly";

/// Words that make a label, if one of them is followed by a colon. In other languages, these are whole labels.
pub const LABELS: &str = "answer verdict choice winner decision judgment judgement conclusion result preference selection better best \
    preferred pick chosen overall 答案 最终答案 最終答案 结论 結論 裁决 判决 最终裁决 最终判决 最终结论 判断 最终判断 选择 最终选择 回答 答え 判定 정답 답변 결론 \
    antwort ergebnis urteil fazit entscheidung réponse verdit conclusión respuesta veredicto resposta risposta \
    verdetto ответ вердикт вывод odpowiedź werdykt antwoord svar";

/// Words in labels of other languages that are not a label alone.
pub const FOREIGN: &str =
    "最终答案是 答案是 答案为 我选择 我的答案是 endgültige endgültiges finale finaler la mi ma meine final";

/// First words of a statement about a side.
pub const VERBS: &str =
    "is was wins answers follows does performs remains would comes scores provides gives has offers it's";

/// Words of a statement about a side.
pub const PREDICATE: &str = "is was wins answers follows does performs remains be the a better best one overall clearly definitely much \
    slightly marginally significantly somewhat far by clear strongly winner preferred preferable superior here \
    my choice output response answer option its own instruction instructions task prompt question correctly of \
    two these outputs responses certainly considerably substantially obviously simply pick verdict \
    comparison therefore thus hence assistant";

/// Words of which one must occur in a verdict about a side.
pub const BETTER: &str = "better best wins winner preferred preferable superior winning";

/// Words of a statement that the sides are equal.
pub const TIE: &str = "it's it is are the they both outputs responses answers two a tie tied draw equal equally good well of in \
    quality and as options bad strong these there all assistants completely perfectly identical verdict declare \
    call would";

/// Words of which one must occur in a tie.
pub const TIED: &str = "tie tied draw equal equally";

/// First words of an explanation behind a verdict.
pub const REASONS: &str = "because since as due it it's its this the explanation reason reasons reasoning rationale justification why \
    here here's note confidence feedback comment";

/// Words of polite endings.
pub const CLOSING: &str = "i hope this that helps help let me know if you have any questions question need further more assistance \
    anything else feel free to ask thank thanks your for please happy glad nice great good day a an regards \
    would like can could clarification details cheers was helpful or the judge welcome you're";

/// Words that may reverse a verdict or cast doubt on it, besides those that end in n't.
pub const DOUBTS: &str = "not no never neither nor none without cannot cant dont doesnt isnt wont worse worst inferior weaker weakest \
    lesser least less loser loses lost losing lose loss reject rejected rejects rejecting discard discarded \
    wrong wrongly incorrect incorrectly bad poor poorer poorest fails fail failed mistake mistaken error errors \
    instead rather than over other another latter former but however although though while whereas yet except \
    unless if could should might may maybe perhaps possibly unsure uncertain actually wait hm hmm reconsider \
    reconsidering reconsidered correction corrected sorry apologies apologize apologise oops reflection scratch \
    second first again changed change revise revised opposite reverse reversed swap swapped switch switched \
    kidding joke joking ironically ignore ignores ignoring disregard false untrue deny refuse avoid eliminate \
    eliminated exclude excluded excluding dispreferred flipped flip tie tied equal equally both either bottom \
    last dislike disagree doubt unlike hardly contrary beats initial initially preliminary tentative tentatively \
    earlier previously until new updated lacks lack misses omits forgets flawed";

/// Words with which an explanation that names no side may state a new verdict.
pub const DECIDES: &str = "winner verdict prefer preferred preference choose chosen choice pick select selected decision number \
    judgment";

/// Words that, before a side, say that it is the verdict; besides the [`LABELS`] that are not [`NOUNS`].
pub const SAYS: &str = "is be choose chose chosen pick picked select selected prefer preferred favor favour go vote better best \
    winner winning superior verdict";

/// Words that may stand before a marker or a JSON object, besides those before a side and [`PREDICATE`].
pub const INTRODUCES: &str =
    "this in on comparison based analysis here's json format formatted requested required specified valid object";

/// First words of a clause before a verdict that may contain any word without doubt, such as "Based on the criteria, ...".
pub const GROUNDS: &str = "based considering given after comparing looking weighing evaluating upon having taking";
