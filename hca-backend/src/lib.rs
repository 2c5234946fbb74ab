//! HCA drivers under the midlayer: the soft HCA (and, later, the verbs HCA).
