//! Forms of rows, listed in messages.

/// Forms of a row, for error messages.
pub const FORMS: &str = "{i_chosen, r_chosen, i_reject, r_reject}, {prompt, chosen, rejected}, {chosen, rejected} as conversations or whole texts, \
     {conversations, chosen, rejected}, {prompt_chosen, chosen, prompt_rejected, rejected}, {instruction, response}, {prompt, completion}, \
     {messages}, {conversations}, {text}; one text may have a {label}, true or false";
